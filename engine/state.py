"""The state of a training run: everything that a checkpoint must hold."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import load_weights
from models.video_network import VideoNetwork
from models.weight_files import misfit, shown_name, unusable

from .config import ConfigError
from .precision import Precision

NO_BEST = -1.0  # percent; every accuracy is higher


@dataclass
class TrainingState:
    """Model, optimiser, loss scaler and averaged weights after ``epoch`` epochs and ``step`` steps of the next one.

    ``best`` is the highest validation Prec@1 so far, in percent. ``skipped`` counts the steps that were left out
    because they were not finite. ``totals`` holds the sums of loss, top-1, top-5 and clips of the epoch so far, over
    all processes. ``left_out`` has the videos of the epoch that could not be read: path -> reason.

    The state of random generators is not saved. It is not needed, because each step of a process (``step_seed``) and
    each clip draws from a new seed.
    """

    model: VideoNetwork
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
        """The model that is validated and published. This is the averaged model if weights are averaged."""
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
        """The content of a checkpoint. ``config`` are the run's settings.

        ``state_dict`` holds the validated weights. If weights are averaged, ``train_state_dict`` holds the weights from
        which training continues.
        """
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
        """Take the state of a checkpoint.

        Errors: ``ConfigError`` or ``WeightsError`` if it does not fit.
        """
        weights = content.get("train_state_dict", content["state_dict"])
        load_weights(self.model, content | {"state_dict": weights}, name=source)
        _restore_optimizer(self.optimizer, content, source)
        if content.get("scaler") and self.precision.scaler.is_enabled():
            self.precision.scaler.load_state_dict(content["scaler"])
        if self.ema is not None:
            load_weights(self.ema.module, content, name=source)
            # If the run did not average its weights before, the average starts here.
            self.ema.n_averaged.fill_(content.get("ema_updates", 0))
        self.epoch, self.step, self.best = content["epoch"], content.get("step", 0), content["best_prec1"]
        self.skipped, self.totals = content.get("skipped", 0), list(content.get("totals", self.totals))
        self.left_out = dict(content.get("left_out", {}))


def _restore_optimizer(optimizer: torch.optim.Optimizer, content: dict, source: str) -> None:
    """Take the momentum from a checkpoint. Learning rates, decay and multipliers still come from the recipe.

    Errors: ``ConfigError`` if the checkpoint has other parameters, or momentum that cannot be used.
    """
    groups, state = optimizer.state_dict()["param_groups"], content["optimizer"]["state"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved = [len(group["params"]) for group in content["optimizer"]["param_groups"]]
    if saved != [len(group["params"]) for group in groups] or not set(state) <= set(range(len(parameters))):
        raise ConfigError(f"{source}: other parameters were trained there; freeze what it froze, or start a new run")
    for index, entry in state.items():
        momentum = entry.get("momentum_buffer")
        if momentum is None:
            continue
        problem = unusable(momentum) or misfit(momentum, parameters[index])
        if problem or not momentum.isfinite().all():
            raise ConfigError(
                f"{source}: optimizer.state.{index}.momentum_buffer is {shown_name(problem or 'not finite')}; "
                "resume from another checkpoint of the run, or start a new one"
            )
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def average_weights(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of weights and BN statistics; ``None`` if ``decay`` is ``None``."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True).requires_grad_(False)
