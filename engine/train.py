"""One epoch of training."""

import math
import time

import torch
from torch import nn
from torch.utils.data import DataLoader

from data.transforms import normalise

from . import distributed
from .config import ConfigError, Recipe
from .log import Meter, info, progress
from .metrics import count_correct
from .optim import train_step


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    epoch: int,
    lr: float,
    device: torch.device,
) -> dict[str, float]:
    """Train on every batch of ``loader``; returns the epoch's ``loss top1 top5`` over all processes.

    ``lr`` is for the log; the optimiser's groups have theirs already.
    Errors: ``ConfigError`` when the loss is no longer a number.
    """
    model.train()
    times, waits, speed = Meter(), Meter(), Meter()
    since, waited, clips_since = time.perf_counter(), 0.0, 0  # since the last time that the device was waited for
    totals = torch.zeros(4, device=device)  # sums of loss, top-1, top-5 and clips of this process
    start = time.perf_counter()
    for i, (clips, labels, _) in enumerate(progress(loader, f"epoch {epoch}")):
        loaded = time.perf_counter()
        clips, labels = normalise(clips.to(device, non_blocking=True)), labels.to(device, non_blocking=True)
        logits, loss, _ = train_step(model, clips, labels, optimizer, recipe.label_smoothing, recipe.clip_gradient)
        step = torch.cat([loss[None] * len(labels), count_correct(logits, labels), loss.new_tensor([len(labels)])])
        totals += step
        waited, clips_since = waited + loaded - start, clips_since + len(labels)

        if i % recipe.print_every == 0 or i == len(loader) - 1:
            now = distributed.all_sum(torch.stack([step, totals])).tolist()  # waits for the device
            busy = time.perf_counter() - since - waited
            speed.update(clips_since * distributed.world_size() / busy, busy)
            since, waited, clips_since = time.perf_counter(), 0.0, 0
            _record(times, waits, start, loaded)
            (loss_now, *correct_now), (loss_sum, *correct_sum) = ([v / row[3] for v in row[:3]] for row in now)
            info(
                f"Epoch: [{epoch}][{i}/{len(loader)}], lr: {lr:.5f}\t"
                f"Time {times.value:.3f} ({times.average:.3f})\tData {waits.value:.3f} ({waits.average:.3f})\t"
                f"Loss {loss_now:.4f} ({loss_sum:.4f})\t"
                f"Prec@1 {100 * correct_now[0]:.3f} ({100 * correct_sum[0]:.3f})\t"
                f"Prec@5 {100 * correct_now[1]:.3f} ({100 * correct_sum[1]:.3f})\t"
                f"Speed {speed.value:.3f} V/s ({speed.average:.4f}) V/s"
            )
            if not math.isfinite(loss_sum):
                raise ConfigError(f"the loss is {loss_sum} in epoch {epoch}, step {i}; lower --lr or --clip_gradient")
        else:
            _record(times, waits, start, loaded)
        start = time.perf_counter()
    return {"loss": loss_sum, "top1": 100 * correct_sum[0], "top5": 100 * correct_sum[1]}


def _record(times: Meter, waits: Meter, start: float, loaded: float) -> None:
    """Seconds of this step, and those of them that were spent waiting for data."""
    times.update(time.perf_counter() - start)
    waits.update(loaded - start)
