"""A copy of the repository in which the programs of scripts/ run in seconds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import quick_python
import yaml
from toy_run import NAMES, ROOT, make_dataset

ROOMS = ("ops", "models", "data", "engine", "reports", "scripts", "figs", "logs", "benchmarks", "tests")
PROGRAMS = ("main.py", "test_models.py", "hubconf.py")


def copy_repository(folder: Path, names: list[str] = NAMES) -> None:
    """Copy the rooms and programs. toy_something has two videos of each of the classes ``names`` in each split."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("toy_something", "__pycache__"))
    for program in PROGRAMS:
        shutil.copy(ROOT / program, folder)
    make_dataset(folder / "data" / "toy_something", per_class=2, names=names)


def shorten(folder: Path, models: tuple[str, ...], names: list[str] = NAMES, fresh: bool = True) -> None:
    """Leave out the set-up, train these models for one epoch, and let toy_something have only the classes ``names``.

    If ``fresh``, the programs are real Python processes, as for a user, and otherwise those of ``quick_python``.
    """
    for model in models:
        recipe = folder / "models" / "recipes" / f"{model}.yaml"
        content = yaml.safe_load(recipe.read_text())
        recipe.write_text(yaml.safe_dump(content | {"epochs": 1, "global_batch_size": 4, "workers": 0}))
    config = folder / "data" / "toy_something.yaml"
    values = yaml.safe_load(config.read_text()) | {"num_classes": len(names), "categories": names}
    config.write_text(yaml.safe_dump(values))
    (folder / "scripts" / "setup.sh").write_text("setup() { :; }\n")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable if fresh else quick_python.executable())


def run_script(folder: Path, name: str) -> subprocess.CompletedProcess:
    """Run a shell script of ``scripts/``."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": ":".join(sys.path[1:])}
    command = ["bash", str(folder / "scripts" / name)]
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)
