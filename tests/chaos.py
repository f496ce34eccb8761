"""Causes accidents of every kind at random moments. After each, the run must soon end or continue as documented.

``python -m tests.chaos --minutes 10`` starts training runs of one and two processes. Their loading processes, ranks and
main processes are killed, stopped or get signals, the disk is full, or frames are broken. After each accident the same
command resumes the run with ``--resume auto``. A run that reaches its end must have the weights and the validation line
of an undisturbed run.
"""

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from kill_and_resume import last_result, progress_of, start, wait_for, weights  # noqa: E402
from toy_run import ROOT, make_dataset  # noqa: E402

from scripts.steps import children, kill_all  # noqa: E402

LIMIT = 90.0  # seconds that a run may take to end; torchrun gives its processes 30 of them
EPOCHS = 4
# Runs give up stopped loading processes early, which leaves time for more accidents.
IMPATIENT = "from engine import workers\nworkers.LOOK_EVERY, workers.LONGEST_STOP = 0.5, 3.0\n"


@dataclass
class Accident:
    """An accident of a training run, and its possible results: exit statuses of one process, words in the output."""

    do: Callable[[subprocess.Popen, Path, random.Random], None]
    statuses: tuple[int, ...]  # 0 if the run may still reach its end
    words: str = ""  # in the output if the run ended with status 1
    largest_file: int | None = None  # bytes


def ranks(process: subprocess.Popen) -> list[int]:
    """The training processes: torchrun's children, or the process itself."""
    return children(process.pid) if "torch.distributed.run" in process.args else [process.pid]


def to_worker(number: int) -> Callable:
    def send(process: subprocess.Popen, _: Path, rng: random.Random) -> None:
        workers = [worker for rank in ranks(process) for worker in children(rank)]
        if workers:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(workers), number)

    return send


def kill_a_rank(process: subprocess.Popen, _: Path, rng: random.Random) -> None:
    with suppress(ProcessLookupError, IndexError):
        os.kill(rng.choice(ranks(process)), signal.SIGKILL)


def stop_and_continue(process: subprocess.Popen, _: Path, rng: random.Random) -> None:
    rank = rng.choice(ranks(process) or [process.pid])
    with suppress(ProcessLookupError):
        os.kill(rank, signal.SIGSTOP)
        time.sleep(rng.uniform(0.1, 2))
        os.kill(rank, signal.SIGCONT)


def ctrl_c_twice(process: subprocess.Popen, _: Path, rng: random.Random) -> None:
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(rng.uniform(0, 0.3))


def break_a_frame(process: subprocess.Popen, folder: Path, rng: random.Random) -> None:
    """Damage one frame. ``mend_the_frame`` restores it before the next start."""
    frame = rng.choice(sorted(folder.glob("frames/*/*/*.jpg")))
    (folder / "broken").write_text(str(frame))
    (folder / "whole").write_bytes(frame.read_bytes())
    frame.write_bytes(b"no image")


def mend_the_frame(folder: Path) -> None:
    if (folder / "broken").exists():
        Path((folder / "broken").read_text()).write_bytes((folder / "whole").read_bytes())
        (folder / "broken").unlink()


def nothing(*_: object) -> None:
    pass


ACCIDENTS = {
    "a loading process is killed": Accident(to_worker(signal.SIGKILL), (0, 1), "a loading process died"),
    "a loading process is stopped": Accident(to_worker(signal.SIGSTOP), (0, 1), "a loading process stood still"),
    "a loading process is told to end": Accident(to_worker(signal.SIGTERM), (0,)),
    "a training process is killed": Accident(kill_a_rank, (-9,)),
    "everything is killed": Accident(lambda process, *_: kill_all(process.pid), (-9,)),
    "a training process stands still": Accident(stop_and_continue, (0,)),
    "SIGTERM": Accident(lambda process, *_: process.terminate(), (0, 75, -15)),
    "Ctrl-C": Accident(lambda process, *_: os.killpg(process.pid, signal.SIGINT), (0, 75, 130, -2)),
    "Ctrl-C twice": Accident(ctrl_c_twice, (0, 75, 130, -2)),
    "a frame breaks": Accident(break_a_frame, (0, 1), "is not a readable image"),
    "the disk is full": Accident(nothing, (1,), "cannot be written", 200_000),
}


def launch(folder: Path, run: str, processes: int, largest_file: int | None = None) -> subprocess.Popen:
    """Start a training run that prints every step, in its own session. It cannot write files above ``largest_file``."""
    script = folder / "impatient.py"
    script.write_text(
        f"import runpy, sys\nsys.argv[0] = 'main.py'\n{IMPATIENT}"
        f"runpy.run_path({str(ROOT / 'main.py')!r}, run_name='__main__')\n"
    )
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if largest_file is not None:  # the started process inherits it
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, limit[1]))
        return start(folder, run, EPOCHS, processes, program=script, workers=2, print_every=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def disturb(folder: Path, run: str, processes: int, name: str, rng: random.Random) -> tuple[int, float, str]:
    """Start a run and cause an accident; returns exit status, seconds from the accident to the end, and output."""
    accident = ACCIDENTS[name]
    process = launch(folder, run, processes, accident.largest_file)
    output = ""
    if rng.random() < 0.8:
        with suppress(AssertionError):  # a run on a full disk makes no step
            output = wait_for(process, "Epoch: ")
        time.sleep(rng.uniform(0, 1.5))
    else:  # the accident happens during the start
        time.sleep(rng.uniform(0, 4))
    begin = time.monotonic()
    if process.poll() is None:
        accident.do(process, folder, rng)
    try:
        output += process.communicate(timeout=LIMIT)[0]
    except subprocess.TimeoutExpired:
        kill_all(process.pid)
        raise AssertionError(f"{name}: still running after {LIMIT} s: {process.communicate()[0][-3000:]}") from None
    mend_the_frame(folder)
    return process.returncode, time.monotonic() - begin, output


def check(name: str, processes: int, status: int, output: str) -> None:
    """Assert that a run ended as documented."""
    accident = ACCIDENTS[name]
    if processes == 1:
        assert status in accident.statuses, f"{name}: status {status}, not one of {accident.statuses}: {output[-3000:]}"
        assert "Traceback" not in output or "KeyboardInterrupt" in output, f"{name}: {output[-3000:]}"
    else:  # torchrun turns every status other than 0 into 1
        assert status in (0, 1, -2, -9, -15), f"{name}: status {status}: {output[-3000:]}"
        assert '/main.py", line' not in output or name.startswith("Ctrl-C"), f"{name}: {output[-3000:]}"
    if status == 1 and accident.words:
        assert accident.words in output, f"{name}: a status of 1 without {accident.words!r}: {output[-3000:]}"


def same_end(folder: Path, run: str, undisturbed: str) -> None:
    a, b = (weights(folder, name, EPOCHS) for name in (undisturbed, run))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), f"{run}: other weights at the end"
    ends = [last_result(folder, name) for name in (undisturbed, run)]
    assert ends[0] == ends[1], ends


def chaos(folder: Path, minutes: float, processes_of_runs: list[int], seed: int) -> None:
    """Disturb runs until the time is over, then let the last runs finish."""
    rng, end = random.Random(seed), time.monotonic() + 60 * minutes
    make_dataset(folder, per_class=6)
    happened, runs, finished = Counter(), dict.fromkeys(processes_of_runs, 0), 0
    for processes in runs:
        process = launch(folder, f"undisturbed{processes}", processes)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    names: list[str] = []
    while time.monotonic() < end or not happened:
        for processes in runs:
            if not names:
                names = rng.sample(sorted(ACCIDENTS), len(ACCIDENTS))
            name, run = names.pop(), f"p{processes}_{runs[processes]}"
            before = progress_of(folder, run)
            status, seconds, output = disturb(folder, run, processes, name, rng)
            check(name, processes, status, output)
            done = progress_of(folder, run)
            assert done >= before, f"{name}: lost a checkpoint, {before} -> {done}"
            happened[name] += 1
            print(
                f"{sum(happened.values()):4}: {name}, {processes} process(es): status {status} after {seconds:.1f} s, "
                f"{done[0]} epochs and {done[1]} steps done",
                flush=True,
            )
            if done[0] == EPOCHS:
                same_end(folder, run, f"undisturbed{processes}")
                runs[processes] += 1
                finished += 1
    for processes, number in runs.items():
        process = launch(folder, f"p{processes}_{number}", processes)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
        same_end(folder, f"p{processes}_{number}", f"undisturbed{processes}")
    print(
        f"{sum(happened.values())} accidents ({', '.join(f'{name}: {n}' for name, n in sorted(happened.items()))}); "
        f"{finished + len(runs)} disturbed runs have the weights and the validation line of undisturbed ones"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of the runs, in turn (default: 1 2)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chaos(Path(folder), args.minutes, args.processes, args.seed)


if __name__ == "__main__":
    main()
