"""A small dataset in a temporary folder, and ways to run main.py and test_models.py on it as a user would."""

import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import quick_python

from data import toy

ROOT = Path(__file__).parents[1]
NAMES = ["Moving something from left to right", "Moving something from right to left"]


def make_dataset(folder: Path, per_class: int = 4, names: list[str] = NAMES) -> Path:
    """Frame folders, lists and a dataset YAML of the toy classes ``names``; returns the YAML."""
    return toy.draw_small(folder, names, per_class)


def run(*command: object, cwd: Path, processes: int = 1, fresh: bool = False) -> subprocess.CompletedProcess:
    """Run a program of the repository's root in ``cwd``, under torchrun if ``processes`` > 1. Its output is one stream.

    If ``fresh``, a real Python process starts, as for a user. Its imports take seconds. By default, a copy of a process
    that has already imported them runs the program (``quick_python``).
    """
    python = sys.executable if fresh else quick_python.executable()
    words = [python, "-W", "ignore"]
    if processes > 1:
        words += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--"]
    return subprocess.run(
        [*words, str(ROOT / str(command[0])), *map(str, command[1:])],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )


def run_inside(*command: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run a program in this process. This is the fastest way, and a test can patch modules."""
    words, output, former = [str(word) for word in command], io.StringIO(), (sys.argv, os.getcwd())
    code: object = 0
    try:
        sys.argv = [words[0], *words[1:]]
        os.chdir(cwd)
        with redirect_stdout(output), redirect_stderr(output):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = former[0]
        os.chdir(former[1])
    if isinstance(code, str):  # as the interpreter handles sys.exit("message")
        output.write(code + "\n")
        code = 1
    return subprocess.CompletedProcess(words, code, output.getvalue())


def quick_flags(**changes: object) -> list[str]:
    """Recipe flags for a run that takes only seconds."""
    flags = {"epochs": 2, "global_batch_size": 4, "lr": 0.05, "workers": 0, "num_segments": 4, "device": "cpu"}
    flags |= changes
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]
