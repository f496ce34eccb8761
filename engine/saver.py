"""When a run writes its checkpoints."""

import time
from pathlib import Path

from . import checkpoint, distributed
from .config import Recipe
from .interrupt import Stopped
from .log import info
from .state import TrainingState


class Saver:
    """Writes the checkpoints of a run, by one process for all.

    ``settings``: what the run depends on, which each checkpoint holds.
    """

    def __init__(self, folder: Path, settings: dict, recipe: Recipe):
        self.folder, self.settings, self.recipe = folder, settings, recipe
        self.saved, self.place = time.monotonic(), (0, 0)

    def save(self, state: TrainingState, is_best: bool = False) -> None:
        """Save, unless the run is where it was saved last."""
        place = state.epoch, state.step
        if distributed.is_main() and place != self.place:
            checkpoint.save(self.folder, state.to_checkpoint(self.settings), is_best, self.recipe.keep)
        self.saved, self.place = time.monotonic(), place

    def after_step(self, state: TrainingState, stop_now: bool) -> None:
        """Save where ``save_every`` says so. Errors: ``Stopped``, after saving, if the run was asked to stop."""
        if stop_now or checkpoint.is_due(self.recipe.save_every, state.step, time.monotonic() - self.saved):
            self.save(state)
        if stop_now:
            info(f"stopped, {state}; go on with --resume auto")
            raise Stopped
