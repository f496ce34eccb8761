"""Checkpoints of a run: written whole or not at all, found again, kept few."""

import os
import re
import shutil
from pathlib import Path

import torch

from models.weights import read_checkpoint

from .config import ConfigError

BEST = "resnet_rgb_model_best.pth.tar"
_EPOCH = re.compile(r"resnet_rgb_epoch_(\d+)_checkpoint\.pth\.tar")


def epoch_file(folder: Path, epochs_done: int) -> Path:
    """The published name of the checkpoint after ``epochs_done`` epochs."""
    return folder / f"resnet_rgb_epoch_{epochs_done}_checkpoint.pth.tar"


def save(folder: Path, state: dict, is_best: bool, keep: int) -> None:
    """Write the checkpoint of ``state["epoch"]`` epochs and, if best, the best one; drop all but the last ``keep``.

    A file gets its name only when it is complete and on disk, so a crash leaves the former one as it was.
    """
    path = epoch_file(folder, state["epoch"])
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
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
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written ({error}); make room or choose another --run folder") from error
    for old in _by_epoch(folder)[:-keep]:
        old.unlink()


def newest(folder: Path) -> Path | None:
    """The checkpoint of the most epochs in a run folder."""
    found = _by_epoch(folder)
    return found[-1] if found else None


def read_for_resume(path: Path, arch: str) -> dict:
    """A checkpoint that training can go on from. Errors: ``ConfigError`` or ``WeightsError`` with the reason."""
    checkpoint = read_checkpoint(path)
    if not {"optimizer", "config", "arch", "epoch", "best_prec1"} <= set(checkpoint):
        raise ConfigError(f"{path}: holds no optimiser state, so training cannot go on from it; start a new run")
    if checkpoint["arch"] != arch:
        raise ConfigError(f"{path}: is a run of {checkpoint['arch']}, not of {arch}; choose another --run")
    return checkpoint


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict, path: Path) -> None:
    """Momentum from the checkpoint; learning rates, decay and multipliers stay those of the present recipe."""
    groups = optimizer.state_dict()["param_groups"]
    try:
        optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path}: its optimiser state does not fit the model as set now ({error})") from None
    saved = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    if saved != [len(group["params"]) for group in groups]:
        raise ConfigError(f"{path}: other parameters were trained there; keep its partial_bn, or start a new run")


def changes(state: dict, recipe: dict) -> list[str]:
    """What the present recipe says otherwise than the checkpoint's, as ``key: then -> now``."""
    then = state["config"].get("recipe", {})
    return [f"{key}: {then.get(key)} -> {value}" for key, value in recipe.items() if then.get(key) != value]


def _by_epoch(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.glob("*.pth.tar") if (match := _EPOCH.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
