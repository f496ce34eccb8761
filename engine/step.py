"""One step of training: forward and backward passes of its micro-batches, and one update."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.video_network import WithAuxiliary
from reports.accuracy import count_correct

from . import distributed
from .batch import BatchPlan
from .precision import Precision


@dataclass
class Step:
    """The result of a step. ``loss top1 top5 clips`` are sums over the clips of all processes."""

    loss: float
    top1: float
    top5: float
    clips: float
    finite: bool  # if false, there was no update
    stop: bool  # whether any process was asked to stop
    norm: float  # of the gradient, before clipping
    unread: int  # clips of all processes that could not be read
    bad: list[int] = field(default_factory=list)  # indices of this process's clips whose loss is not finite

    @property
    def sums(self) -> tuple[float, float, float, float]:
        """Of loss, top-1, top-5 and clips."""
        return self.loss, self.top1, self.top5, self.clips


def train_step(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    plan: BatchPlan,
    precision: Precision,
    label_smoothing: float = 0.0,
    clip_gradient: float | None = None,
    stop: bool = False,
) -> Step:
    """One update from the mean loss over the ``plan.global_batch`` clips of a step.

    ``batches`` are this process's ``plan.accumulation`` pairs of normalised clips (N,T,C,H,W) and labels (M). If M < N,
    the last N - M clips replace clips that could not be read. They have no part in the loss, so a clip that could not
    be read has a gradient of zero. If M is 0, the BN statistics do not change either.

    The loss is the cross-entropy. With label smoothing e it is ``(1-e)*NLL + e*mean over classes of -log p``. A network
    with an auxiliary head adds its ``aux_weight`` times the loss of that head. The gradient is clipped to the norm
    ``clip_gradient``. If a loss of any process, or the gradient, is not finite, no process updates.
    """
    optimizer.zero_grad()
    losses, correct, clips_done, unread = [], 0.0, 0, 0
    # DistributedDataParallel averages gradients over the processes, so each loss is multiplied by their number.
    scale = plan.processes / plan.global_batch
    for i, (clips, labels) in enumerate(batches, start=1):
        kept = None if len(labels) else copy_buffers(model)
        more = i < plan.accumulation and isinstance(model, DistributedDataParallel)
        with model.no_sync() if more else nullcontext():
            with precision.autocast():
                output = model(clips)
            logits, loss = logits_and_loss(model, output, labels, label_smoothing)
            precision.scaler.scale(loss.sum() * scale).backward()
        if kept is not None:
            restore_buffers(model, kept)
        losses.append(loss.detach())
        correct = correct + count_correct(logits.detach(), labels)
        clips_done += len(labels)
        unread += len(clips) - len(labels)

    precision.scaler.unscale_(optimizer)
    limit = float("inf") if clip_gradient is None else clip_gradient
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)

    loss = torch.cat(losses)
    local = torch.stack([loss.sum(), *correct, norm]).double().cpu()  # the only wait for the device in a step
    bad = torch.nonzero(~torch.isfinite(loss)).flatten().tolist()
    # All processes have the same gradient and norm. If there is a scaler, an overflow is normal, and it skips the
    # update.
    failed = not torch.isfinite(local[0]) or not (torch.isfinite(local[3]) or precision.scaler.is_enabled())
    sums = torch.tensor([*local[:3], clips_done, unread, failed, stop], dtype=torch.float64)
    *sums, unread, failed, stop = distributed.all_sum(sums).tolist()
    if not failed:
        precision.scaler.step(optimizer)
    precision.scaler.update()
    return Step(*sums, finite=not failed, stop=stop > 0, norm=float(local[3]), unread=int(unread), bad=bad)


def logits_and_loss(
    model: nn.Module, output: Tensor | WithAuxiliary, labels: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The logits (M,K) and losses (M) of the first M clips. An auxiliary loss is multiplied by the ``aux_weight``."""

    def cross_entropy(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")

    if not isinstance(output, WithAuxiliary):
        logits = output[: len(labels)].float()
        return logits, cross_entropy(logits)
    logits, aux_logits = (part[: len(labels)].float() for part in output)
    network = model.module if isinstance(model, DistributedDataParallel) else model
    return logits, cross_entropy(logits) + network.aux_weight * cross_entropy(aux_logits)


def copy_buffers(model: nn.Module) -> list[Tensor]:
    """Copies of the BN statistics. A forward pass changes the originals."""
    return [buffer.clone() for buffer in model.buffers()]


def restore_buffers(model: nn.Module, kept: list[Tensor]) -> None:
    for buffer, value in zip(model.buffers(), kept, strict=True):
        buffer.copy_(value)
