"""The checkpoint files of a run: when and how they are written, which are kept, and how they are found."""

import os
import re
import shutil
import time
from pathlib import Path
from typing import NoReturn

import torch

from models.weight_files import read_checkpoint

from . import distributed
from .config import ConfigError, Recipe
from .interrupt import Stopped
from .log import info
from .state import TrainingState
from .stored import RESUMED, check_entries

BEST = "resnet_rgb_model_best.pth.tar"
_NUMBERED = re.compile(r"resnet_rgb_epoch_(\d+)(?:_step_(\d+))?_checkpoint\.pth\.tar")


class Saver:
    """Saves the checkpoints of a run. Only rank 0 writes.

    ``settings`` is everything that the run depends on. Each checkpoint contains it.
    """

    def __init__(self, folder: Path, settings: dict, recipe: Recipe):
        self.folder, self.settings, self.recipe = folder, settings, recipe
        self.last_time, self.last_place = time.monotonic(), (0, 0)

    def save(self, state: TrainingState, is_best: bool = False) -> None:
        """Save, unless the last checkpoint has the same epoch and step."""
        place = state.epoch, state.step
        if distributed.is_main() and place != self.last_place:
            save(self.folder, state.to_checkpoint(self.settings), is_best, self.recipe.keep)
        self.last_time, self.last_place = time.monotonic(), place

    def after_step(self, state: TrainingState, stop_now: bool) -> None:
        """Save if ``save_every`` says so.

        Errors: ``Stopped`` if ``stop_now`` is true, after saving.
        """
        if stop_now:
            self.stop(state)
        if self._is_due(state.step):
            self.save(state)

    def stop(self, state: TrainingState) -> NoReturn:
        """Save and end the run.

        Errors: ``Stopped``, after saving.
        """
        self.save(state)
        info(f"stopped, {state}; go on with --resume auto")
        raise Stopped

    def _is_due(self, step: int) -> bool:
        """Whether to save now, within an epoch.

        ``save_every`` is a number of steps, or of minutes since the last save (``"20m"``).
        """
        every = self.recipe.save_every
        if isinstance(every, str):
            return time.monotonic() - self.last_time >= 60 * float(every.removesuffix("m"))
        return every is not None and step % every == 0


def file_name(epochs: int, steps: int = 0) -> str:
    """The name of the checkpoint after ``epochs`` epochs, as in the released code.

    Within an epoch it also has the steps.
    """
    return f"resnet_rgb_epoch_{epochs}{f'_step_{steps}' if steps else ''}_checkpoint.pth.tar"


def save(folder: Path, content: dict, is_best: bool, keep: int) -> None:
    """Write a checkpoint under the name of its epoch and step and, if ``is_best``, also as ``BEST``.

    Then delete all epochs except the last ``keep``, and all checkpoints within an epoch except the newest. A file gets
    its name only when it is complete and on disk. A crash therefore does not damage earlier files.

    Errors: ``ConfigError`` if the file cannot be written.
    """
    path = folder / file_name(content["epoch"], content["step"])
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        if is_best:
            # A hard link stays when the first name is deleted. The file is copied if the file system has no hard links.
            try:
                part.hardlink_to(path)
            except OSError:
                shutil.copyfile(path, part)
            part.rename(folder / BEST)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written ({error}); make room or choose another --run folder") from error
    numbered = _numbered(folder)
    epochs = [key for key in numbered if key[1] == 0]
    for key in [*epochs[:-keep], *(key for key in numbered if key[1] and key != max(numbered))]:
        numbered[key].unlink(missing_ok=True)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest epoch and step in a run folder; ``None`` if the folder has none."""
    numbered = _numbered(folder)
    return numbered[max(numbered)] if numbered else None


def open_folder(folder: Path) -> None:
    """Make a run's folder, and delete the incomplete files of a process that was killed while writing.

    Errors: ``ConfigError`` if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob("*.pth.tar.part"):
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error}); free the place or choose another --run") from None


def read_for_resume(path: Path, arch: str) -> dict:
    """Read a checkpoint from which training can continue.

    Errors: ``ConfigError`` or ``WeightsError`` with the reason.
    """
    content = read_checkpoint(path)
    check_for_resume(content, str(path), arch)
    return content


def check_for_resume(content: dict, source: str, arch: str) -> None:
    """Check that training of ``arch`` can continue from ``content``.

    Errors: ``ConfigError`` with the reason.
    """
    remedy = "training cannot go on from it; resume from another checkpoint of the run, or start one with --tune_from"
    check_entries(content, RESUMED, source, remedy)
    if content["arch"] != arch:
        raise ConfigError(f"{source}: is a run of {content['arch']}, not of {arch}; choose another --run")


def _numbered(folder: Path) -> dict[tuple[int, int], Path]:
    """(epochs, steps) -> file, in ascending order."""
    found = ((_NUMBERED.fullmatch(path.name), path) for path in folder.glob("*.pth.tar"))
    return dict(sorted(((int(match[1]), int(match[2] or 0)), path) for match, path in found if match))


def _sync_folder(folder: Path) -> None:
    """Write the new file names to disk, if the system supports that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
