"""One epoch of training."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import distributed
from .config import ConfigError, Recipe
from .interrupt import StopRequest
from .log import Meter, info, progress
from .state import TrainingState
from .step import Step, train_step

WAITING_IS_MUCH = 0.2  # of an epoch's time


def train_one_epoch(
    net: nn.Module,
    loader: DataLoader,
    state: TrainingState,
    recipe: Recipe,
    lr: float,
    stop: StopRequest,
    after_step: Callable[[bool], None],
) -> dict[str, float]:
    """Train from ``state.step`` to the end of the epoch; returns its ``loss top1 top5`` over all processes.

    ``net`` is ``state.model``, wrapped where several processes train it. The optimiser has its learning rates already,
    ``lr`` is for the log. After each step ``after_step`` is called, with whether some process was asked to stop.
    Errors: ``ConfigError`` that names the videos when the loss is no longer a number.
    """
    net.train()
    sampler, epoch, device = loader.batch_sampler, state.epoch, state.precision.device
    sampler.epoch, sampler.first_step, loader.dataset.epoch = epoch, state.step, epoch
    feed = _Feed(progress(loader, f"epoch {epoch}"), loader.dataset.modality.normalise, device)
    times, waits, speed = Meter(), Meter(), Meter()
    start = time.perf_counter()
    for i in range(state.step, sampler.steps):
        torch.manual_seed(step_seed(recipe.seed, epoch, i, distributed.rank()))
        kept = _statistics(state.model) if state.skipped < recipe.skip_nonfinite else None
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
        if not step.finite:
            _leave_out(step, [loader.dataset.videos[k].path for k in feed.indices], state, kept, recipe)
        else:
            now = (step.loss, step.top1, step.top5, step.clips)
            state.totals = [total + value for total, value in zip(state.totals, now, strict=True)]
            if state.ema is not None:
                state.ema.update_parameters(state.model)
        state.step = i + 1
        seconds = time.perf_counter() - start
        times.update(seconds)
        waits.update(feed.waited)
        speed.update(sampler.plan.global_batch / (seconds - feed.waited), seconds - feed.waited)
        if i % recipe.print_every == 0 or state.step == sampler.steps:
            _report(epoch, i, sampler.steps, lr, times, waits, speed, step, state.totals)
        after_step(step.stop)
        start = time.perf_counter()
    feed.close()
    if state.totals[3] == 0:
        raise ConfigError(f"no step of epoch {epoch} was finite; lower --lr or --clip_gradient")
    if waits.total > WAITING_IS_MUCH * times.total:
        share = 100 * waits.total / times.total
        info(
            f"epoch {epoch}: the loader is the limit, {share:.0f} % of the time went into waiting for data; raise "
            f"--workers ({recipe.workers} now), store smaller frames, or use a faster disk"
        )
    loss, top1, top5 = _means(state.totals)
    return {"loss": loss, "top1": top1, "top5": top5}


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """The seed of what one process draws in one step (dropout, stochastic depth).

    A run that goes on from any step so draws what an undisturbed one would, without a stored generator.
    """
    return int(np.random.SeedSequence((seed, epoch, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _Feed:
    """Batches of a loader, brought to the device and normalised, with the time that was waited for them."""

    def __init__(self, batches: Iterator, normalise: Callable[[Tensor], Tensor], device: torch.device):
        self.bar, self.batches, self.normalise, self.device = batches, iter(batches), normalise, device
        self.waited, self.indices = 0.0, []  # seconds, and places in the list, of the last step

    def take(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The next ``count`` batches: float (N,T,C,H,W) and labels (N)."""
        self.waited, self.indices = 0.0, []
        for _ in range(count):
            start = time.perf_counter()
            clips, labels, indices = next(self.batches)
            self.waited += time.perf_counter() - start
            self.indices += indices.tolist()
            clips, labels = (tensor.to(self.device, non_blocking=True) for tensor in (clips, labels))
            yield self.normalise(clips), labels

    def close(self) -> None:
        self.bar.close()


def _statistics(model: nn.Module) -> list[Tensor]:
    """BN statistics, which a forward pass changes."""
    return [buffer.clone() for buffer in model.buffers()]


def _leave_out(step: Step, videos: list[str], state: TrainingState, kept: list[Tensor] | None, recipe: Recipe) -> None:
    """A step that is not finite: put the BN statistics back and go on, or, with none kept, stop.

    ``videos``: the paths of this process's clips in that step.
    """
    # Where every loss is finite but their gradient is not, any of the step's clips may have done it.
    found = distributed.gather_objects(([videos[k] for k in step.bad], videos))
    named = sum((bad for bad, _ in found), []) or sum((everything for _, everything in found), [])
    shown = ", ".join(named[:8]) + (f", ... ({len(named)} in all)" if len(named) > 8 else "")
    what = (
        f"epoch {state.epoch}, step {state.step}: the loss is {step.loss / step.clips:.4f} and its gradient's norm "
        f"{step.norm:.4f} with the videos {shown}"
    )
    if kept is None:
        more = f" after {state.skipped} steps left out" if state.skipped else ""
        remedy = "lower --lr, look at these videos, or leave such steps out with --skip_nonfinite N"
        distributed.fail_together(ConfigError(f"{what}{more}; {remedy}"))
    for buffer, value in zip(state.model.buffers(), kept, strict=True):
        buffer.copy_(value)
    state.skipped += 1
    info(f"{what}: step left out, {state.skipped} of at most {recipe.skip_nonfinite}")


def _means(totals: list[float]) -> tuple[float, float, float]:
    """Loss, top-1 and top-5 in percent."""
    loss, top1, top5, clips = totals
    return (loss / clips, 100 * top1 / clips, 100 * top5 / clips) if clips else (float("nan"),) * 3


def _report(epoch, i, steps, lr, times, waits, speed, step: Step, totals: list[float]) -> None:
    now, sofar = _means([step.loss, step.top1, step.top5, step.clips]), _means(totals)
    info(
        f"Epoch: [{epoch}][{i}/{steps}], lr: {lr:.5f}\t"
        f"Time {times.value:.3f} ({times.average:.3f})\tData {waits.value:.3f} ({waits.average:.3f})\t"
        f"Loss {now[0]:.4f} ({sofar[0]:.4f})\t"
        f"Prec@1 {now[1]:.3f} ({sofar[1]:.3f})\tPrec@5 {now[2]:.3f} ({sofar[2]:.3f})\t"
        f"Speed {speed.value:.3f} V/s ({speed.average:.4f}) V/s"
    )
