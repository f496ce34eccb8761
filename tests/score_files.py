"""Score files of random numbers, scripts/report.py run on them, and main.py and test_models.py run for a score file."""

import csv
from pathlib import Path

import numpy as np
from toy_run import make_dataset, quick_flags, run, run_inside


def random_arrays(n: int, k: int, seed: int = 0, **more: object) -> dict[str, np.ndarray]:
    """Scores that are right for about half of the videos. The last class never occurs. ``more`` replaces arrays."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k - 1, n)
    scores = rng.normal(size=(n, k)).astype(np.float32)
    scores[np.arange(n), labels] += 1.5
    arrays = {"scores": scores, "labels": labels, "paths": np.array([f"a folder/{i}" for i in range(n)])}
    return arrays | {name: np.asarray(value) for name, value in more.items()}


def write(path: Path, arrays: dict) -> Path:
    np.savez(path, **arrays)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report(folder: Path, *words: object) -> tuple[int, str]:
    """Run ``python -m scripts.report`` in ``folder``; returns the exit status and the output."""
    result = run_inside("scripts/report.py", *words, cwd=folder)
    return result.returncode, result.stdout


def error_line(folder: Path, *words: object) -> str:
    """The error line of a report that must fail with status 1 and print nothing else."""
    status, printed = report(folder, *words)
    assert status == 1 and printed.count("\n") == 1 and printed.startswith("error: "), printed
    return printed.removeprefix("error: ").rstrip("\n")


def train_for_tests(folder: Path) -> tuple[Path, Path]:
    """Draw a dataset in ``folder`` and train tsm_tiny as the run "run" for one epoch; returns the folder and the YAML.

    Both are the first arguments of ``run_test``.
    """
    dataset = make_dataset(folder)
    result = run_inside("main.py", dataset, "tsm_tiny", "--run", "run", *quick_flags(epochs=1), cwd=folder)
    assert result.returncode == 0, result.stdout
    return folder, dataset


def run_test(folder: Path, dataset: Path, weights: object, *flags: object, processes: int = 1) -> tuple[str, dict]:
    """Run test_models.py in a folder; returns its output and its score file."""
    command = ["test_models.py", dataset, "--weights", weights, "--device", "cpu", "--workers", 0, *flags]
    command += ["--scores", "tested.npz"]
    result = run(*command, cwd=folder, processes=processes) if processes > 1 else run_inside(*command, cwd=folder)
    assert result.returncode == 0, result.stdout
    return result.stdout, dict(np.load(folder / "tested.npz"))
