"""What training changes, and its place in the run: everything that a checkpoint must hold."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import load_weights
from models.resnet import VideoResNet

from . import checkpoint
from .precision import Precision

NO_BEST = -1.0  # percent: any accuracy is better


@dataclass
class TrainingState:
    """Model, optimiser, loss scaler and averaged weights after ``epoch`` epochs and ``step`` steps of the next.

    ``totals`` are the sums of loss, top-1, top-5 and clips of the epoch so far, over all processes; ``skipped`` counts
    steps left out because they were not finite; ``left_out`` says of each video of the epoch that could not be read
    (its path) why. Random numbers are drawn from a seed of their own for each step and
    process (``step_seed``) and for each clip, so no generator has a state to keep.
    """

    model: VideoResNet
    optimizer: torch.optim.Optimizer
    precision: Precision
    ema: AveragedModel | None = None
    epoch: int = 0
    step: int = 0
    best: float = NO_BEST
    skipped: int = 0
    totals: list[float] = field(default_factory=lambda: [0.0] * 4)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def tested(self) -> nn.Module:
        """The model that is validated and published: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module

    def __str__(self) -> str:
        within = f" and {self.step} steps" if self.step else ""
        best = "no validation yet" if self.best == NO_BEST else f"best Prec@1 {self.best:.3f}"
        return f"{self.epoch} epochs{within} done, {best}"

    def next_epoch(self) -> None:
        self.epoch += 1
        self.restart_epoch()

    def restart_epoch(self) -> None:
        self.step, self.totals, self.left_out = 0, [0.0] * 4, {}

    def to_checkpoint(self, config: dict) -> dict:
        """``state_dict`` is what was validated; what training goes on from stands beside it if that is another."""
        content = {
            "epoch": self.epoch,
            "step": self.step,
            "arch": self.model.arch,
            "state_dict": self.tested.state_dict(),
            "best_prec1": max(self.best, 0.0),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "skipped": self.skipped,
            "totals": self.totals,
            "left_out": self.left_out,
            "config": config,
        }
        if self.ema is not None:
            content |= {"train_state_dict": self.model.state_dict(), "ema_updates": int(self.ema.n_averaged)}
        return content

    def restore(self, content: dict, source: str) -> None:
        """Go on from a checkpoint. Errors: ``ConfigError`` or ``WeightsError`` for one that does not fit."""
        weights = content.get("train_state_dict", content["state_dict"])
        load_weights(self.model, content | {"state_dict": weights}, name=source)
        checkpoint.restore_optimizer(self.optimizer, content, source)
        if content.get("scaler") and self.precision.scaler.is_enabled():
            self.precision.scaler.load_state_dict(content["scaler"])
        if self.ema is not None:
            load_weights(self.ema.module, content, name=source)
            # A run that was not averaged so far starts its average here.
            self.ema.n_averaged.fill_(content.get("ema_updates", 0))
        self.epoch, self.step, self.best = content["epoch"], content.get("step", 0), content["best_prec1"]
        self.skipped, self.totals = content.get("skipped", 0), list(content.get("totals", self.totals))
        self.left_out = dict(content.get("left_out", {}))


def average_weights(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of weights and BN statistics, or ``None`` for no decay."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True).requires_grad_(False)
