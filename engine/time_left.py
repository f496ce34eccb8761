"""How long the rest of a run takes, estimated from what this process has measured."""

import math
import time

from .config import Recipe
from .log_lines import Meter
from .schedule import is_validated
from .state import TrainingState

UNITS = (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48), ("d", 86400, math.inf))  # name, seconds, below how many


class TimeLeft:
    """Measures the steps and validations of this process, and writes the log lines about the time left.

    ``steps`` is the number of steps of a whole epoch. A resumed run measures only what it has trained itself.
    """

    def __init__(self, recipe: Recipe, steps: int):
        self.recipe, self.steps = recipe, steps
        self.start = time.perf_counter()  # of this process, then of each epoch
        self.here = 0  # steps of this epoch that this process has trained
        self.first: float | None = None  # seconds of the first step of this process
        self.times = Meter()  # seconds of the other steps, in the newest epoch that has any
        self.validation: float | None = None  # seconds of the newest validation
        self.said = False  # whether the user already knows how long the run takes

    def step(self, seconds: float) -> None:
        """Note a step of training and its seconds."""
        if self.here == 0 and self.first is not None:
            self.times = Meter()
        self.here += 1
        if self.first is None:
            self.first = seconds  # it starts loaders and compiles kernels, so the others are faster
        else:
            self.times.update(seconds)

    def first_line(self, state: TrainingState) -> str:
        """A line about this epoch and the run, once in the first epoch of this process; otherwise an empty text.

        It comes at the first printed step for which a step has been measured. No validation is measured yet.
        """
        if self.said or self.times.count == 0 or state.step == self.steps:
            return ""
        self.said = True
        epoch = self.times.average * (self.steps - state.step)
        return (
            f"epoch {state.epoch + 1}/{self.recipe.epochs}: about {duration(epoch)} left, the run about "
            f"{self._left(state.epoch, state.step)}"
        )

    def epoch_line(self, state: TrainingState, tested: dict[str, float]) -> str:
        """The line after an epoch, which ``state`` already counts. ``tested`` are the figures of its validation.

        ``tested`` is empty if the epoch had no validation. The next epoch starts now.
        """
        now = time.perf_counter()
        parts = [f"epoch {state.epoch}/{self.recipe.epochs}", duration(now - self.start)]
        if self.here < self.steps:
            parts[-1] += f" for {self.here} of {self.steps} steps"
        self.start, self.here, self.said = now, 0, True
        self.validation = tested.get("seconds", self.validation)
        if state.epoch < self.recipe.epochs and self.first is not None:
            parts.append(self._left(state.epoch, 0))
        if tested:
            top5 = "" if math.isnan(tested["top5"]) else f" / {tested['top5']:.1f}"
            parts.append(f"val {tested['top1']:.1f}{top5}")
        # A checkpoint does not tell "no validation yet" from 0 %.
        if tested or state.best > 0:
            parts.append(f"best {state.best:.1f}")
        return ", ".join(parts)

    def _left(self, epoch: int, step: int) -> str:
        """The time from ``step`` of ``epoch`` to the end of the run, as text."""
        steps = (self.recipe.epochs - epoch) * self.steps - step
        validations = sum(is_validated(self.recipe, later) for later in range(epoch, self.recipe.epochs))
        seconds = steps * (self.times.average if self.times.count else self.first)
        if self.validation is None:
            return f"{duration(seconds)} left{' without validations' if validations else ''}"
        return f"{duration(seconds + validations * self.validation)} left"


def duration(seconds: float) -> str:
    """A time in the unit that suits it (s, min, h or d), with two digits where this is enough."""
    unit, size = next((unit, size) for unit, size, most in UNITS if round(seconds / size) < most)
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"
