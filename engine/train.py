"""One epoch of training, and its validation."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data import DataError, EvalDataset, TrainDataset
from reports.accuracy import highest, means
from reports.statistics import confusion_matrix

from . import distributed
from .batch import StepSampler
from .board import Board
from .checkpoint import Saver
from .config import ConfigError, Recipe, first_few
from .evaluate import evaluate
from .interrupt import Stopped, StopRequest
from .loading import advise_on_waiting, clips_on_device
from .log import info, progress
from .log_lines import Meter, training_line
from .state import TrainingState
from .step import Step, copy_buffers, restore_buffers, train_step
from .time_left import TimeLeft

MOST_UNREAD = 0.01  # share of a list, in one epoch
WAITING_IS_MUCH = 0.2  # share of an epoch's time


def train_one_epoch(
    net: nn.Module,
    loader: DataLoader,
    state: TrainingState,
    recipe: Recipe,
    lr: float,
    stop: StopRequest,
    saver: Saver,
    board: Board,
    time_left: TimeLeft,
) -> dict[str, float]:
    """Train from ``state.step`` to the end of the epoch; returns its ``loss top1 top5`` over all processes.

    It also returns the figures of ``_speeds``, if it has trained a step. ``net`` is ``state.model``, wrapped if several
    processes train it. The optimiser already has the learning rates; ``lr`` is only for the log. ``saver`` may save
    after each step.

    Errors: ``ConfigError``, which names the videos, if the loss is not finite; ``DataError`` if a video cannot be read
    (if such videos are skipped, only if there are too many); ``Stopped`` if a process was asked to stop.
    """
    net.train()
    sampler, epoch, device = loader.batch_sampler, state.epoch, state.precision.device
    sampler.epoch, sampler.first_step = epoch, state.step
    feed = _Feed(progress(loader, f"epoch {epoch}"), loader.dataset, device, board)
    times, waits, speed = Meter(), Meter(), Meter()
    start = time.perf_counter()
    for i in range(state.step, sampler.steps):
        torch.manual_seed(step_seed(recipe.seed, epoch, i, distributed.rank()))
        kept = copy_buffers(state.model) if state.skipped < recipe.skip_nonfinite else None
        step = train_step(
            net,
            feed.take(sampler.plan.accumulation),
            state.optimizer,
            sampler.plan,
            state.precision,
            recipe.label_smoothing,
            recipe.clip_gradient,
            stop.requested,
        )
        if step.unread:
            _leave_out_videos(feed.unread, state, loader.dataset)
        if not step.finite:
            _undo_or_stop(step, [loader.dataset.videos[k].path for k in feed.indices], state, kept, recipe)
        else:
            state.totals = [total + value for total, value in zip(state.totals, step.sums, strict=True)]
            if state.ema is not None:
                state.ema.update_parameters(state.model)
        state.step = i + 1
        seconds = time.perf_counter() - start
        times.update(seconds)
        waits.update(feed.waited)
        speed.update(sampler.plan.global_batch / (seconds - feed.waited), seconds - feed.waited)
        time_left.step(seconds)
        if i % recipe.print_every == 0 or state.step == sampler.steps:
            now, so_far = (means(sums, state.model.num_classes) for sums in (step.sums, state.totals))
            info(training_line(epoch, i, sampler.steps, lr, now, so_far, times, waits, speed))
            info(time_left.first_line(state))
            board.write_step(state, lr, now, sampler.plan.global_batch / seconds, speed.value)
        saver.after_step(state, step.stop)
        start = time.perf_counter()
    feed.close()
    if state.left_out:
        info(f"epoch {epoch}: trained WITHOUT {len(state.left_out)} bad videos: {first_few(list(state.left_out))}")
    if state.totals[3] == 0:
        raise ConfigError(f"no step of epoch {epoch} was finite; lower --lr or --clip_gradient")
    if waits.total > WAITING_IS_MUCH * times.total:
        share = 100 * waits.total / times.total
        info(
            f"epoch {epoch}: the loader is the limit, {share:.0f} % of the time went into waiting for data; "
            f"{advise_on_waiting(recipe.workers)}"
        )
    figures = dict(zip(("loss", "top1", "top5"), means(state.totals, state.model.num_classes), strict=True))
    return figures | _speeds(times, waits, speed, sampler, device)


def _speeds(times: Meter, waits: Meter, speed: Meter, sampler: StepSampler, device: torch.device) -> dict[str, float]:
    """Figures of an epoch's speed, from its steps that this process has trained. Without such steps, no figures.

    ``seconds`` are of a whole epoch. ``percent_waiting`` is the share of the time that went into waiting for data. On a
    GPU, ``gpu_memory_gb`` is the most memory that tensors have occupied since the start.
    """
    if not times.count:
        return {}
    figures = {
        "seconds": times.average * sampler.steps,
        "clips_per_second": sampler.plan.global_batch / times.average,
        "clips_per_second_without_waiting": speed.average,
        "percent_waiting": 100 * waits.total / times.total,
    }
    return figures | ({"gpu_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9} if device.type == "cuda" else {})


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """The seed of the random numbers of one process in one step (dropout, stochastic depth).

    Because of it, a resumed run draws the same numbers as an uninterrupted run, and no generator has to be saved.
    """
    return int(np.random.SeedSequence((seed, epoch, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _Feed:
    """Batches of a loader, moved to the device and normalised, and the time spent waiting for them."""

    def __init__(self, batches: Iterator, dataset: TrainDataset, device: torch.device, board: Board):
        self.bar, self.dataset, self.device, self.board = batches, dataset, device, board
        self.batches = clips_on_device(map(self._completed, batches), device)
        # For the last step: seconds, places in the list, and place -> reason for clips that could not be read.
        self.waited, self.indices, self.unread = 0.0, [], {}

    def take(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The next ``count`` batches: float clips (N,T,C,H,W) and labels (M).

        M is less than N if some of the N clips could not be read. The last N - M clips are then copies of the batch's
        other clips, or grey clips if no clip could be read.
        """
        self.waited, self.indices, self.unread = 0.0, [], {}
        for _ in range(count):
            start = time.perf_counter()
            clips, labels, indices, unread = next(self.batches)
            self.waited += time.perf_counter() - start
            self.indices += indices.tolist()
            self.unread |= unread
            clips = self.dataset.modality.normalise(clips)
            self.board.keep_clips(clips, self.dataset.modality)
            yield clips, labels.to(self.device, non_blocking=True)

    def _completed(self, batch: list | tuple) -> tuple[Tensor, Tensor, Tensor, dict[int, str]]:
        """A batch, in which copies of other clips replace those that could not be read, and the reasons for these."""
        batch, unread = batch if isinstance(batch, tuple) else (batch, {})
        clips, labels, indices = batch or self._nothing(len(unread))
        if unread and len(labels):
            clips = clips[torch.arange(len(labels) + len(unread)) % len(labels)]
        return clips, labels, indices, unread

    def _nothing(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        data, none = self.dataset, torch.empty(0, dtype=torch.int64)
        shape = count, data.num_segments, data.modality.stored_channels, data.input_size, data.input_size
        return torch.full(shape, 128, dtype=torch.uint8), none, none

    def close(self) -> None:
        self.bar.close()


def _leave_out_videos(unread: dict[int, str], state: TrainingState, dataset: TrainDataset) -> None:
    """Log and count the videos of a step that any process could not read. ``unread`` is for this process.

    Errors: ``DataError`` if more than ``MOST_UNREAD`` of the list could not be read in this epoch.
    """
    for found in distributed.gather_objects({dataset.videos[i].path: reason for i, reason in unread.items()}):
        for path, reason in found.items():
            info(f"left out: {path}: {reason}")
        state.left_out |= found
    if len(state.left_out) > MOST_UNREAD * len(dataset):
        distributed.fail_together(
            DataError(
                f"epoch {state.epoch}: {len(state.left_out)} of {len(dataset)} videos cannot be read, more than "
                f"{MOST_UNREAD:.0%}: {first_few(list(state.left_out))}; extract them again or take them out of the list"
            )
        )


def _undo_or_stop(
    step: Step, videos: list[str], state: TrainingState, kept: list[Tensor] | None, recipe: Recipe
) -> None:
    """Undo a step that is not finite: restore the BN statistics ``kept`` from before the step, and count the step.

    ``videos`` are the paths of this process's clips in that step.

    Errors: ``ConfigError`` if ``kept`` is ``None``, which means that no further step may be skipped.
    """
    # If all losses are finite but the gradient is not, any clip of the step may be the cause.
    found = distributed.gather_objects(([videos[k] for k in step.bad], videos))
    named = sum((bad for bad, _ in found), []) or sum((everything for _, everything in found), [])
    what = (
        f"epoch {state.epoch}, step {state.step}: the loss is {step.loss / step.clips:.4f} and its gradient's norm "
        f"{step.norm:.4f} with the videos {first_few(named)}"
    )
    if kept is None:
        more = f" after {state.skipped} steps left out" if state.skipped else ""
        remedy = "lower --lr, look at these videos, or leave such steps out with --skip_nonfinite N"
        distributed.fail_together(ConfigError(f"{what}{more}; {remedy}"))
    restore_buffers(state.model, kept)
    state.skipped += 1
    info(f"{what}: step left out, {state.skipped} of at most {recipe.skip_nonfinite}")


def validate(
    dataset: EvalDataset, state: TrainingState, recipe: Recipe, batch_size: int, stop: StopRequest, saver: Saver
) -> tuple[dict[str, float], np.ndarray]:
    """Validate the current weights; returns ``loss top1 top5 class_accuracy seconds`` and the confusion matrix (K, K).

    Errors: the errors of ``evaluate``.
    """
    start = time.perf_counter()
    distributed.broadcast_buffers(state.tested)
    try:
        scores, result, left_out = evaluate(
            state.tested,
            dataset,
            state.precision,
            batch_size,
            recipe.workers,
            recipe.print_every,
            name=f"epoch {state.epoch}",
            label_smoothing=recipe.label_smoothing,
            stop=stop,
            skip_bad=recipe.on_bad_video == "skip",
        )
    except Stopped:
        saver.stop(state)
    if left_out:
        counted = f"{len(left_out)} of {len(dataset)} videos"
        info(f"epoch {state.epoch}: validation WITHOUT {counted}: {first_few(list(left_out.values()))}")
    labels = np.array([video.label for place, video in enumerate(dataset.videos) if place not in left_out])
    predictions = highest(np.delete(scores, list(left_out), axis=0), 1)[:, 0]
    confusion = confusion_matrix(labels, predictions, scores.shape[1])
    return result | {"seconds": time.perf_counter() - start}, confusion
