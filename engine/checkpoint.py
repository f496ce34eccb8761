"""Checkpoint files of a run: written whole or not at all, found again, kept few."""

import os
import re
import shutil
from pathlib import Path

import torch

from models.weight_files import misfit, read_checkpoint, shown_name, unusable

from .config import ConfigError
from .stored import RESUMED, check_entries

BEST = "resnet_rgb_model_best.pth.tar"
_NUMBERED = re.compile(r"resnet_rgb_epoch_(\d+)(?:_step_(\d+))?_checkpoint\.pth\.tar")


def file_name(epochs: int, steps: int = 0) -> str:
    """The published name of the checkpoint after ``epochs`` epochs; one from within an epoch says its steps too."""
    return f"resnet_rgb_epoch_{epochs}{f'_step_{steps}' if steps else ''}_checkpoint.pth.tar"


def save(folder: Path, content: dict, is_best: bool, keep: int) -> None:
    """Write a checkpoint under the name of its epoch and step and, if best, under the best one's.

    Then drop all but the last ``keep`` epochs and, within the present epoch, all but the last step. A file gets its
    name only when it is complete and on disk, so a crash leaves the former ones as they were.
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
            # A second name for the same file, which outlives the first, or a copy where there are no hard links.
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


def is_due(save_every: int | str | None, step: int, seconds: float) -> bool:
    """Whether it is time to save within an epoch: after so many steps, or minutes (``"20m"``) since the last one."""
    if isinstance(save_every, str):
        return seconds >= 60 * float(save_every.removesuffix("m"))
    return save_every is not None and step % save_every == 0


def newest(folder: Path) -> Path | None:
    """The checkpoint that has come furthest in a run folder."""
    numbered = _numbered(folder)
    return numbered[max(numbered)] if numbered else None


def open_folder(folder: Path) -> None:
    """Make a run's folder, and clear it of what a process that was killed while writing has left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob("*.pth.tar.part"):
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error}); free the place or choose another --run") from None


def read_for_resume(path: Path, arch: str) -> dict:
    """A checkpoint that training can go on from. Errors: ``ConfigError`` or ``WeightsError`` with the reason."""
    content = read_checkpoint(path)
    check_for_resume(content, str(path), arch)
    return content


def check_for_resume(content: dict, source: str, arch: str) -> None:
    """Errors: ``ConfigError`` unless training of ``arch`` can go on from ``content``."""
    remedy = "training cannot go on from it; resume from another checkpoint of the run, or start one with --tune_from"
    check_entries(content, RESUMED, source, remedy)
    if content["arch"] != arch:
        raise ConfigError(f"{source}: is a run of {content['arch']}, not of {arch}; choose another --run")


def restore_optimizer(optimizer: torch.optim.Optimizer, content: dict, source: str) -> None:
    """Momentum from a checkpoint; learning rates, decay and multipliers stay those of the present recipe."""
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


def _numbered(folder: Path) -> dict[tuple[int, int], Path]:
    """(epochs, steps) -> file, in that order."""
    found = ((_NUMBERED.fullmatch(path.name), path) for path in folder.glob("*.pth.tar"))
    return dict(sorted(((int(match[1]), int(match[2] or 0)), path) for match, path in found if match))


def _sync_folder(folder: Path) -> None:
    """Bring the new names to disk, where the system can."""
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
