"""Kill a training run at random moments, resume it, and compare its result with an undisturbed run.

``python -m tests.kill_and_resume --kills 50 [--processes 2]`` sends SIGKILL to all processes of the run at any point
(importing, drawing clips, writing a checkpoint). Each time it resumes the run with ``--resume auto``.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from toy_run import ROOT, make_dataset, quick_flags  # noqa: E402

from scripts.steps import kill_all  # noqa: E402

STEPS = 4  # per epoch: 8 videos, two per step
RESULT = re.compile(r"Validation Results: (Prec@1 \S+ Prec@5 \S+ Loss \S+)")
NUMBERED = re.compile(r"resnet_rgb_epoch_(\d+)(?:_step_(\d+))?_checkpoint\.pth\.tar")
# A resumed run must draw dropout and stochastic depth again, and carry over momentum and averaged weights.
CHANCE = {"dropout": 0.5, "stochastic_depth": 0.5, "ema_decay": 0.9, "save_every": 1, "global_batch_size": 2}


def start(
    folder: Path,
    run: str,
    epochs: int,
    processes: int = 1,
    program: Path = ROOT / "main.py",
    python: str = sys.executable,
    **flags: object,
) -> subprocess.Popen:
    """Start a training run of ``tsm_tiny`` in its own session. It resumes if the run exists."""
    launcher = [python, "-W", "ignore"]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--"]
    words = [str(program), "small.yaml", "tsm_tiny", "--run", run, "--resume", "auto"]
    return launch([*launcher, *words, *quick_flags(**CHANCE | {"epochs": epochs} | flags)], folder)


def launch(command: list, folder: Path) -> subprocess.Popen:
    """Start a program of the project in its own session, with its output in one stream."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen, text: str) -> str:
    """Read output up to the first line that contains ``text``, and return it."""
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came: {seen}")


def progress_of(folder: Path, run: str) -> tuple[int, int]:
    """(epochs, steps) of the furthest checkpoint. Every checkpoint of the run must be readable."""
    done = [(0, 0)]
    for path in (folder / "net_runs" / run).glob("*.pth.tar"):
        content = torch.load(path, weights_only=True)
        if match := NUMBERED.fullmatch(path.name):
            done.append((int(match[1]), int(match[2] or 0)))
            assert (content["epoch"], content["step"]) == done[-1], path
    return max(done)


def last_result(folder: Path, run: str) -> str:
    return RESULT.findall((folder / "logs" / f"{run}.log").read_text())[-1]


def weights(folder: Path, run: str, epochs: int) -> dict:
    file = folder / "net_runs" / run / f"resnet_rgb_epoch_{epochs}_checkpoint.pth.tar"
    content = torch.load(file, weights_only=True)
    return content["state_dict"] | {f"train.{key}": value for key, value in content["train_state_dict"].items()}


def kill_and_resume(folder: Path, kills: int, processes: int = 1, seed: int = 0, epochs: int | None = None) -> str:
    """Assert that a killed run ends like an undisturbed run; returns its last validation line."""
    epochs = epochs or 3 + 2 * kills
    make_dataset(folder)
    begin = time.monotonic()
    undisturbed = start(folder, "undisturbed", epochs, processes)
    wait_for(undisturbed, "Epoch: ")
    until_first_step = time.monotonic() - begin
    output = undisturbed.communicate()[0]
    assert undisturbed.returncode == 0, output

    rng, done = random.Random(seed), (0, 0)
    for kill in range(kills):
        process = start(folder, "killed", epochs, processes)
        if kill % 2:  # mostly before the first step
            wait, when = rng.uniform(0, until_first_step), "the start"
        else:
            wait, when = rng.uniform(0, 0.3), "the first steps"
            wait_for(process, "Epoch: ")
        time.sleep(wait)
        assert process.poll() is None, f"the run ended before kill {kill + 1} of {kills}; give it more epochs"
        kill_all(process.pid)
        process.communicate()
        before, done = done, progress_of(folder, "killed")
        assert done >= before, f"kill {kill + 1} lost a checkpoint: {before} -> {done}"
        print(f"kill {kill + 1} of {kills}, {wait:.2f} s after {when}: {done[0]} epochs, {done[1]} steps", flush=True)
    process = start(folder, "killed", epochs, processes)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    a, b = (weights(folder, run, epochs) for run in ("undisturbed", "killed"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), "other weights at the end"
    ends = [last_result(folder, run) for run in ("undisturbed", "killed")]
    assert ends[0] == ends[1], ends
    return ends[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kill_and_resume", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="of the run; default 3 + 2 x kills")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        end = kill_and_resume(Path(folder), args.kills, args.processes, args.seed, args.epochs)
    print(f"{args.kills} kills, {args.processes} process(es), no checkpoint lost; both runs end with {end}")


if __name__ == "__main__":
    main()
