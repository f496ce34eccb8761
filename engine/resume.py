"""A resumed run takes its settings, its state and its place in the epoch from a checkpoint."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from data.messages import one_line

from . import checkpoint
from .config import ConfigError, present_names
from .log import info
from .state import NO_BEST, TrainingState

# The clips of a step depend on these settings, and on epoch and step.
STEPS_DEPEND_ON = ("global_batch_size", "seed", "training videos")


@dataclass
class Start:
    """The start of a run: ``path`` and ``content`` of a checkpoint, or nothing for a new run."""

    path: Path | None = None
    content: dict = field(default_factory=dict)
    same_run: bool = True  # whether the checkpoint is in the run's own folder

    @property
    def settings(self) -> dict:
        """The settings of the run that wrote the checkpoint. They are empty for a new run."""
        return self.content.get("config", {})

    @property
    def recipe(self) -> dict:
        return self.settings.get("recipe", {})

    def flags(self, dataset: str) -> dict:
        """The flags that the run was started with. They are empty if it was started with another dataset."""
        same = self.settings.get("dataset", {}).get("name") == dataset
        return self.settings.get("flags", {}) if same else {}


def find_start(resume: str | None, folder: Path, arch: str) -> Start:
    """The start that ``--resume`` asks for.

    Errors: ``ConfigError`` or ``WeightsError`` with the reason, for example if an existing run would be overwritten.
    """
    found = checkpoint.newest(folder)
    if resume is None:
        if found:
            raise ConfigError(f"run {folder.name} exists ({found}); go on with --resume auto or choose another --run")
        return Start()
    if resume == "auto":
        if not found:
            info(f"run {folder.name} has no checkpoint yet and starts from the beginning{_similar(folder)}")
            return Start()
        return Start(found, checkpoint.read_for_resume(found, arch))
    path = Path(resume)
    if found and not (path.exists() and found.samefile(path)):
        raise ConfigError(f"--resume {resume}: run {folder.name} already goes on to {found}; choose another --run")
    return Start(path, checkpoint.read_for_resume(path, arch), same_run=bool(found))


def go_on(state: TrainingState, start: Start, settings: dict) -> None:
    """Put the state of a checkpoint into ``state``, and log which settings have changed since."""
    state.restore(start.content, str(start.path))
    info(f"resumed from {start.path}: {state}")
    before, now = _flat(start.settings), _flat(settings)
    changed = [key for key in now if key in before and before[key] != now[key]]
    for key in changed:
        info(f"changed since that checkpoint: {key}: {one_line(before[key], 100)} -> {one_line(now[key], 100)}")
    if state.step and (others := [key for key in changed if key in STEPS_DEPEND_ON]):
        info(
            f"epoch {state.epoch} starts again, because {' and '.join(others)} changed: its steps have other clips, "
            f"so the clips of the {state.step} finished steps are seen twice"
        )
        state.restart_epoch()
    if not start.same_run or "validation videos" in changed:
        info(f"the best accuracy so far ({max(state.best, 0):.3f}) belongs to another run or list and is not kept")
        state.best = NO_BEST


def _similar(folder: Path) -> str:
    """A hint if a run of a similar name has a checkpoint; otherwise an empty text."""
    runs = [path.parent.name for path in folder.parent.glob("*/*_checkpoint.pth.tar")]
    near = difflib.get_close_matches(folder.name, runs, n=1, cutoff=0.75)
    return f"; did you mean the run {near[0]}?" if near else ""


def _flat(settings: dict) -> dict:
    """The settings that a run depends on, as a flat dictionary.

    Recipe keys have their new names, dataset keys a prefix.
    """
    dataset = {f"dataset {key}": value for key, value in settings.get("dataset", {}).items()}
    others = {key: settings[key] for key in ("variant", "processes") if key in settings}
    return present_names(settings.get("recipe", {})) | dataset | others | settings.get("lists", {})
