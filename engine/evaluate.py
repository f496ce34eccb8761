"""Scores of every video of a list, each exactly once however many processes share the work."""

import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from data import DataError, EvalDataset, collate
from data.dataset import collate_good

from . import distributed
from .config import ConfigError
from .interrupt import Stopped, StopRequest
from .loading import check_shared_memory, clip_bytes, make_loader
from .log import Meter, info, progress
from .metrics import accuracy
from .precision import Precision


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
    """Scores (N, K) float32 in list order, mean logits over views; ``loss top1 top5 class_accuracy``; videos left out.

    ``name`` is what errors call the model: its file, or the epoch.

    Every process takes each P-th video and all get the whole result; nothing is padded or dropped. ``batch_size`` is
    the most clips in one forward pass, views counted; the model is on ``precision.device``.
    A video that cannot be read stops the test; with ``skip_bad`` its scores are NaN, it counts in no figure, and the
    last value says of its place in the list what was wrong.
    Errors: ``DataError`` of such a video; ``ConfigError`` if a score is not finite; ``Stopped`` if a process was asked
    to stop meanwhile.
    """
    model.eval()
    mine = list(range(distributed.rank(), len(dataset), distributed.world_size()))
    views = dataset.num_crops * dataset.num_clips
    videos = max(1, batch_size // views)
    check_shared_memory(workers, videos * views * clip_bytes(dataset))
    subset = Subset(dataset, mine)
    loader = make_loader(subset, workers, precision.device, collate_good if skip_bad else collate, batch_size=videos)
    times, speed, totals = Meter(), Meter(), np.zeros(4)  # sums of loss, top-1, top-5 and videos
    labels_of = np.array([video.label for video in dataset.videos])
    scores: list[np.ndarray] = []
    read: list[int] = []  # places in the list
    left_out: dict[int, str] = {}
    start = time.perf_counter()
    for i, batch in enumerate(progress(loader, "val")):
        if stop is not None and stop.requested:
            break
        if skip_bad:
            batch, bad = batch
            left_out |= bad
            if batch is None:
                continue
        clips, labels, indices = batch
        read += indices.tolist()
        loaded = time.perf_counter()
        scored = score(model, clips.to(precision.device, non_blocking=True), dataset, batch_size, precision)
        scores.append(scored)
        step = _statistics(scored, labels.numpy(), label_smoothing) * len(labels)
        totals += step
        times.update(time.perf_counter() - start)
        speed.update(len(labels) / (time.perf_counter() - loaded))
        if i % print_every == 0:
            now, sofar = step / step[3], totals / totals[3]
            info(
                f"Val: [{i}/{len(loader)}]\tTime {times.value:.3f} ({times.average:.4f})\t"
                f"Loss {now[0]:.4f} ({sofar[0]:.4f})\tPrec@1 {now[1]:.3f} ({sofar[1]:.3f})\t"
                f"Prec@5 {now[2]:.3f} ({sofar[2]:.3f})"
            )
        start = time.perf_counter()

    stopped = stop is not None and stop.requested
    parts = distributed.gather_objects((read, np.concatenate(scores) if scores else None, left_out, stopped))
    if any(stopped for *_, stopped in parts):
        raise Stopped
    left_out = {place: reason for *_, bad, _ in parts for place, reason in bad.items()}
    if len(left_out) == len(dataset):
        first = next(iter(left_out.values()))
        distributed.fail_together(DataError(f"none of the {len(dataset)} videos can be read; the first: {first}"))
    classes = next(part.shape[1] for _, part, *_ in parts if part is not None)
    whole = np.full((len(dataset), classes), np.nan, np.float32)
    for indices, part, *_ in parts:
        if part is not None:
            whole[indices] = part
    kept = [place for place in range(len(dataset)) if place not in left_out]
    check_finite(whole[kept], [dataset.videos[place].path for place in kept], name)
    loss = _statistics(whole[kept], labels_of[kept], label_smoothing)[0]
    result = accuracy(whole[kept], labels_of[kept]) | {"loss": loss}
    info(
        f"Validation Results: Prec@1 {result['top1']:.3f} Prec@5 {result['top5']:.3f} Loss {loss:.5f} "
        f"Time {times.average:.4f} Speed {speed.average * distributed.world_size():.4f} V/s"
    )
    info(f"Class Accuracy {result['class_accuracy']:.2f}%")
    return whole, result, left_out


@torch.no_grad()
def score(
    model: nn.Module, clips: torch.Tensor, dataset: EvalDataset, batch_size: int, precision: Precision
) -> np.ndarray:
    """uint8 (N,V,T,C,H,W) -> mean logits (N,K), at most ``batch_size`` clips at a time."""
    n, views = clips.shape[:2]
    logits = []
    for part in clips.flatten(0, 1).split(batch_size):
        with precision.autocast():
            logits.append(model(dataset.modality.normalise(part)).float())
    logits = torch.cat(logits).unflatten(0, (n, views))  # (N, V, K)
    # What a mirrored view takes for a motion to the left is one to the right.
    mirrored = logits[:, views - dataset.mirrored_views :]
    for label, partner in dataset.mirror_pairs.items():
        if label < partner:
            mirrored[..., [label, partner]] = mirrored[..., [partner, label]]
    return logits.mean(1).cpu().numpy()


def check_finite(scores: np.ndarray, paths: list[str], name: str) -> None:
    """Errors: ``ConfigError`` that names the model and the first of the videos whose scores (N, K) are not finite."""
    bad = np.flatnonzero(~np.isfinite(scores).all(1))
    if len(bad):
        distributed.fail_together(
            ConfigError(
                f"{name}: the scores of {len(bad)} of {len(scores)} videos are not finite, the first {paths[bad[0]]}; "
                "the weights have diverged, or --precision is too narrow: try fp32, an earlier checkpoint, or a lower "
                "--lr"
            )
        )


def _statistics(scores: np.ndarray, labels: np.ndarray, label_smoothing: float) -> np.ndarray:
    """Mean loss, top-1 and top-5 in percent, and a 1."""
    loss = nn.functional.cross_entropy(
        torch.from_numpy(scores), torch.from_numpy(labels), label_smoothing=label_smoothing
    )
    result = accuracy(scores, labels)
    return np.array([float(loss), result["top1"], result["top5"], 1.0])
