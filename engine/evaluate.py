"""Scores every video of a list exactly once, for any number of processes."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from data import DataError, EvalDataset, collate
from data.dataset import collate_good
from reports.accuracy import accuracy, count_correct, means

from . import distributed
from .config import ConfigError
from .interrupt import Stopped, StopRequest
from .loading import check_shared_memory, clip_bytes, clips_on_device, make_loader
from .log import info, progress
from .log_lines import Meter, result_lines, validation_line
from .precision import Precision

# The number of further batches that a device has to do when the scores of a batch are read. A GPU would otherwise wait
# while the host logs the scores and launches the next batch. On a CPU, a batch is done when its scores are there.
BATCHES_AHEAD = {"cuda": 1}


def evaluate(
    model: nn.Module,
    dataset: EvalDataset,
    precision: Precision,
    batch_size: int,
    workers: int,
    print_every: int,
    name: str,
    label_smoothing: float = 0.0,
    stop: StopRequest | None = None,
    skip_bad: bool = False,
) -> tuple[np.ndarray, dict[str, float], dict[int, str]]:
    """Score every video of a list.

    Returns scores, figures and left-out videos. The scores (N, K) float32 are mean logits over views, in list order, or
    mean probabilities if the dataset's ``view_average`` is "softmax". The loss is always that of these means. The
    figures are ``loss top1 top5 class_accuracy``. The left-out videos are place in the list -> reason.

    With P processes, each process scores every P-th video, and all processes get the whole result. No video is repeated
    or dropped.

    The model must be on ``precision.device``. ``batch_size`` is the largest number of clips in one forward pass, and
    each view is a clip. ``name`` is the name of the model in errors: its file, or the epoch. A video that cannot be
    read stops the test. With ``skip_bad`` it is left out instead: its scores are NaN, and the figures do not include
    it.

    Errors: ``DataError`` if a video cannot be read (with ``skip_bad``, only if no video can be read); ``ConfigError``
    if a score is not finite; ``Stopped`` if a process was asked to stop.
    """
    model.eval()
    loader = _make_loader(dataset, batch_size, workers, precision.device, skip_bad)
    share = _Share()
    start = time.perf_counter()
    batches = progress(loader, "val")
    batches = map(share.keep_readable, batches) if skip_bad else batches
    batches = takewhile(lambda _: stop is None or not stop.requested, clips_on_device(batches, precision.device))
    for i, labels, places, running in _started(batches, model, dataset, batch_size, precision):
        scores, seconds = running.finish()
        sums = _sums(scores, labels.numpy(), label_smoothing, dataset.view_average)
        share.add(places.tolist(), scores, sums)
        share.times.update(time.perf_counter() - start)
        share.speed.update(len(labels) / seconds)
        if i % print_every == 0:
            now, so_far = (means(values, scores.shape[1]) for values in (sums, share.sums))
            info(validation_line(i, len(loader), now, so_far, share.times))
        start = time.perf_counter()

    scores, left_out = _gather(share, dataset, stop)
    kept = [place for place in range(len(dataset)) if place not in left_out]
    videos = [dataset.videos[place] for place in kept]
    check_finite(scores[kept], [video.path for video in videos], name)
    labels = np.array([video.label for video in videos])
    result = accuracy(scores[kept], labels) | {
        "loss": _mean_loss(scores[kept], labels, label_smoothing, dataset.view_average)
    }
    info(result_lines(result, share.times.average, share.speed.average * distributed.world_size()))
    return scores, result, left_out


def _make_loader(
    dataset: EvalDataset, batch_size: int, workers: int, device: torch.device, skip_bad: bool
) -> DataLoader:
    """The loader of this process's share, which is every P-th video."""
    views = dataset.num_crops * dataset.num_clips
    videos = max(1, batch_size // views)
    check_shared_memory(workers, videos * views * clip_bytes(dataset))
    mine = Subset(dataset, range(distributed.rank(), len(dataset), distributed.world_size()))
    return make_loader(mine, workers, device, collate_good if skip_bad else collate, batch_size=videos)


def _started(
    batches: Iterable[tuple], model: nn.Module, dataset: EvalDataset, batch_size: int, precision: Precision
) -> Iterator[tuple]:
    """The number, labels, places and ``_Running`` scores of each batch that has clips, in order."""
    waiting, ahead = deque(), BATCHES_AHEAD.get(precision.device.type, 0)
    for i, (clips, labels, places) in enumerate(batches):
        if not len(labels):
            continue
        waiting.append((i, labels, places, _Running(model, clips, dataset, batch_size, precision)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


class _Running:
    """The scores of a batch, which a GPU may still have to compute. ``score`` explains the arguments."""

    def __init__(
        self, model: nn.Module, clips: torch.Tensor, dataset: EvalDataset, batch_size: int, precision: Precision
    ):
        self.gpu = precision.device.type == "cuda"
        self.start = self._time()
        self.scores = score(model, clips, dataset, batch_size, precision)
        if self.gpu:  # the copy starts here, because a later one would also wait for the next batch
            pinned = torch.empty(self.scores.shape, dtype=self.scores.dtype, pin_memory=True)
            self.scores = pinned.copy_(self.scores, non_blocking=True)
        self.end = self._time()

    def _time(self) -> float | torch.cuda.Event:
        """Now; on a GPU, the event that it has done all that was launched so far."""
        if not self.gpu:
            return time.perf_counter()
        return torch.cuda.current_stream().record_event(torch.cuda.Event(enable_timing=True))

    def finish(self) -> tuple[np.ndarray, float]:
        """Wait for the scores (N, K); returns them, and the seconds that the device took for them."""
        if not self.gpu:
            return self.scores.numpy(), self.end - self.start
        self.end.synchronize()
        return self.scores.numpy().copy(), self.start.elapsed_time(self.end) / 1e3


@dataclass
class _Share:
    """What one process has scored so far."""

    places: list[int] = field(default_factory=list)  # in the list, for each video in ``scores``
    scores: list[np.ndarray] = field(default_factory=list)  # (n, K) of each batch
    left_out: dict[int, str] = field(default_factory=dict)  # place -> why the video cannot be read
    sums: np.ndarray = field(default_factory=lambda: np.zeros(4))  # of loss, top-1, top-5 and videos
    times: Meter = field(default_factory=Meter)  # seconds of a batch
    speed: Meter = field(default_factory=Meter)  # videos/s without waiting for data

    def keep_readable(self, batch: tuple) -> tuple:
        """Clips, labels and places of the videos of a batch that could be read. The other videos are noted."""
        readable, unread = batch
        self.left_out |= unread
        return readable or ((), (), ())

    def add(self, places: list[int], scores: np.ndarray, sums: np.ndarray) -> None:
        self.places += places
        self.scores.append(scores)
        self.sums += sums


def _gather(share: _Share, dataset: EvalDataset, stop: StopRequest | None) -> tuple[np.ndarray, dict[int, str]]:
    """The scores (N, K) of all processes in list order, and the reasons of videos left out, whose scores are NaN.

    Errors: ``Stopped`` if a process was asked to stop; ``DataError`` if no video could be read.
    """
    stopped = stop is not None and stop.requested
    scores = np.concatenate(share.scores) if share.scores else None
    parts = distributed.gather_objects((share.places, scores, share.left_out, stopped))
    if any(stopped for *_, stopped in parts):
        raise Stopped
    left_out = {place: reason for *_, unread, _ in parts for place, reason in unread.items()}
    if len(left_out) == len(dataset):
        first = next(iter(left_out.values()))
        distributed.fail_together(DataError(f"none of the {len(dataset)} videos can be read; the first: {first}"))
    scored = [(places, part) for places, part, *_ in parts if part is not None]
    whole = np.full((len(dataset), scored[0][1].shape[1]), np.nan, np.float32)
    for places, part in scored:
        whole[places] = part
    return whole, left_out


@torch.no_grad()
def score(
    model: nn.Module, clips: torch.Tensor, dataset: EvalDataset, batch_size: int, precision: Precision
) -> torch.Tensor:
    """uint8 (N,V,T,C,H,W) -> mean logits or probabilities over views (N,K), on the device of the clips.

    At most ``batch_size`` clips become float and are in a forward pass at the same time.
    """
    n, views = clips.shape[:2]
    logits = []
    for part in clips.flatten(0, 1).split(batch_size):
        with precision.autocast():
            logits.append(model(dataset.modality.normalise(part)).float())
    logits = torch.cat(logits).unflatten(0, (n, views))  # (N, V, K)
    # In a mirrored view, a motion to the left looks like a motion to the right, so such classes exchange their scores.
    mirrored = logits[:, views - dataset.mirrored_views :]
    for label, partner in dataset.mirror_pairs.items():
        if label < partner:
            mirrored[..., [label, partner]] = mirrored[..., [partner, label]]
    scores = logits.softmax(-1) if dataset.view_average == "softmax" else logits
    return scores.mean(1)


def check_finite(scores: np.ndarray, paths: list[str], name: str) -> None:
    """Check that the scores (N, K) of the videos are finite.

    Errors: ``ConfigError`` that names the model and the first video whose scores are not finite.
    """
    bad = np.flatnonzero(~np.isfinite(scores).all(1))
    if len(bad):
        distributed.fail_together(
            ConfigError(
                f"{name}: the scores of {len(bad)} of {len(scores)} videos are not finite, the first {paths[bad[0]]}; "
                "the weights have diverged, or --precision is too narrow: try fp32, an earlier checkpoint, or a lower "
                "--lr"
            )
        )


def _mean_loss(scores: np.ndarray, labels: np.ndarray, label_smoothing: float, kind: str) -> float:
    """The mean cross-entropy of scores (N, K), which are logits or probabilities (``"softmax"``), and labels (N)."""
    scores, labels = torch.from_numpy(scores), torch.from_numpy(labels)
    if kind == "softmax":
        scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
    return float(nn.functional.cross_entropy(scores, labels, label_smoothing=label_smoothing))


def _sums(scores: np.ndarray, labels: np.ndarray, label_smoothing: float, kind: str) -> np.ndarray:
    """The sums of loss, top-1 and top-5 over N videos, and N: (4,)."""
    n = len(labels)
    hits = count_correct(torch.from_numpy(scores), torch.from_numpy(labels))
    return np.array([n * _mean_loss(scores, labels, label_smoothing, kind), *hits.tolist(), n])
