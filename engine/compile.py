"""Whether ``torch.compile`` compiles the network of a run."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from data.messages import shown
from models.families import models

from .config import ConfigError, Recipe

# Compiling takes minutes. A run with this many training clips takes hours on a CPU; the toy set's has 16,000.
LONG_RUN = 100_000
FIRST_STEP = "; the first step takes minutes"


def choose_compilation(recipe: Recipe, model: str, device: torch.device, videos: int) -> tuple[bool, str]:
    """Whether training is compiled, and a line for the log that says why.

    ``videos`` is the number of training videos. The choice depends on the settings of the run and on the machine, and
    not on measured times. A resumed run therefore chooses as before.

    Errors: ``ConfigError`` if ``compile`` is true and the network cannot be compiled.
    """
    if recipe.compile == "auto":
        clips = recipe.epochs * videos
        if why_not := _why_not(recipe, model, device, clips):
            return False, f"compile: no, because {why_not}"
        return True, f"compile: yes, because it makes {model} faster and {clips} clips are a long run{FIRST_STEP}"
    if not recipe.compile:
        return False, "compile: no, because compile is false"
    if recipe.activation_checkpointing:
        raise ConfigError(
            "compile and activation_checkpointing are both true; PyTorch cannot combine them, because batch norm must "
            "not count the second forward pass; choose one"
        )
    if missing := _missing(device):
        raise ConfigError(f"compile is true, but {missing}, or use --compile false")
    return True, f"compile: yes, because compile is true{FIRST_STEP}"


def _why_not(recipe: Recipe, model: str, device: torch.device, clips: int) -> str | None:
    """Why ``auto`` does not compile; ``None`` if it does."""
    family, size = models()[model]
    if device.type != "cpu":
        return "it was not measured on a GPU; ./scripts/check_gpu.sh measures it, and --compile true switches it on"
    if size not in family.compiled:
        return f"it is not known to make {model} faster on a CPU (benchmarks/RESULTS.md)"
    if recipe.activation_checkpointing:
        return "PyTorch cannot combine it with activation_checkpointing"
    if clips < LONG_RUN:
        return f"it takes minutes, and this run is short: {clips} clips, less than {LONG_RUN}"
    return _missing(device)


def _missing(device: torch.device) -> str | None:
    """What this machine lacks for compiling, with the remedy; ``None`` if it lacks nothing."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch.compile chooses it
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"there is no C++ compiler {shown(compiler)}; install one, or name yours in the environment variable CXX"
    if device.type == "cpu" and not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers (Python.h) are not installed; install them (python3-dev)"
    return None
