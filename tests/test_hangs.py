"""Nothing hangs. Whatever happens to a loading process or to the main process, the program ends soon and says why."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_and_resume import launch, start, wait_for
from toy_run import ROOT, make_dataset, quick_flags, run

from scripts.steps import children, kill_all

LIMIT = 25  # seconds: one check every 5 s, and PyTorch's import and exit on a busy machine


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    make_dataset(folder, per_class=16)  # 16 steps per epoch, more than the workers prepare
    return folder


def ends(process: subprocess.Popen, limit: float = LIMIT) -> str:
    """The output of a process.

    The test fails if the process, or another that holds its output open, exceeds the limit.
    """
    try:
        return process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        kill_all(process.pid)
        raise AssertionError(f"it still ran after {limit} s: {process.communicate()[0]}") from None


def error_lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ")]


def program(folder: Path, name: str, patch: str) -> Path:
    """A program that runs one line of Python and then main.py."""
    script = folder / f"{name}.py"
    script.write_text(
        f"import os, runpy, sys\nsys.argv[0] = 'main.py'\n{patch}\n"
        f"runpy.run_path({str(ROOT / 'main.py')!r}, run_name='__main__')\n"
    )
    return script


def test_a_killed_worker_ends_training_with_one_line(small):
    process = start(small, "killed_worker", 40, workers=2, print_every=1, save_every="none")
    wait_for(process, "Epoch: [0][1/16]")
    worker = children(process.pid)[0]
    os.kill(worker, signal.SIGKILL)
    output = ends(process)
    assert process.returncode == 1 and "Traceback" not in output, output
    assert len(error_lines(output)) == 1 and "a loading process died" in error_lines(output)[0]


def test_a_stopped_worker_ends_training_with_one_line(small):
    impatient = program(
        small, "impatient", "from engine import workers\nworkers.LOOK_EVERY, workers.LONGEST_STOP = 0.1, 2"
    )
    process = start(small, "stopped_worker", 40, program=impatient, workers=2, print_every=1, save_every="none")
    wait_for(process, "Epoch: [0][1/16]")
    worker = children(process.pid)[0]
    os.kill(worker, signal.SIGSTOP)
    output = ends(process)
    assert process.returncode == 1 and "Traceback" not in output, output
    assert re.search(rf"a loading process stood still for 2 s \(pid {worker};", error_lines(output)[0]), output
    assert not Path(f"/proc/{worker}").exists()  # the stopped process is also gone


FAILING_STEP = """
import engine.train
count, step = [0], engine.train.train_step
def failing(*args, **kwargs):
    count[0] += 1
    if count[0] == 2:
        raise {error}
    return step(*args, **kwargs)
engine.train.train_step = failing
"""


@pytest.mark.parametrize(
    ("error", "message", "processes"),
    [
        ("ZeroDivisionError('a bug')", "ZeroDivisionError: a bug", 1),
        ("ZeroDivisionError('a bug')", "ZeroDivisionError: a bug", 2),
        ("MemoryError()", "error: the memory does not suffice (MemoryError); lower --batch_size", 1),
    ],
)
def test_an_unexpected_error_ends_the_program(small, processes, error, message):
    """With two processes, torchrun must also see the error. Otherwise it could not restart them."""
    script = program(small, error.split("(")[0], FAILING_STEP.format(error=error))
    flags = quick_flags(workers=2, epochs=40, global_batch_size=2)
    begin = time.monotonic()
    words = [script, "small.yaml", "tsn_tiny", "--run", f"{script.stem}{processes}", *flags]
    result = run(*words, cwd=small, processes=processes, fresh=True)
    assert result.returncode == 1 and message in result.stdout, result.stdout
    assert time.monotonic() - begin < 2 * LIMIT


def test_ctrl_c_twice_ends_training(small):
    process = start(small, "twice", 40, workers=2, print_every=1, save_every="none")
    wait_for(process, "Epoch: [0][1/16]")
    for worker in children(process.pid):
        os.kill(worker, signal.SIGSTOP)  # the step then cannot finish
    os.killpg(process.pid, signal.SIGINT)
    wait_for(process, "SIGINT: saving after this step")
    os.killpg(process.pid, signal.SIGINT)
    output = ends(process)
    assert process.returncode == 130 and "Traceback" not in output and "error: interrupted" in output, output


def test_ctrl_c_ends_a_test(small):
    result = run("main.py", "small.yaml", "tsn_tiny", "--run", "tested", *quick_flags(epochs=1), cwd=small)
    assert result.returncode == 0, result.stdout
    weights = "net_runs/tested/resnet_rgb_model_best.pth.tar"
    script = program(
        small,
        "test",
        "from data import EvalDataset\nimport time\nviews = EvalDataset.views\n"
        "EvalDataset.views = lambda *a, **k: print('reading', flush=True) or time.sleep(60)",
    )
    script.write_text(script.read_text().replace("main.py", "test_models.py"))
    words = ["small.yaml", "--weights", weights, "--device", "cpu", "--workers", "2"]
    process = launch([sys.executable, script, *words], small)
    wait_for(process, "reading")
    os.killpg(process.pid, signal.SIGINT)
    output = ends(process)
    assert process.returncode == 130 and "Traceback" not in output and "error: interrupted" in output, output


def test_a_rank_that_is_killed_ends_the_others_with_a_line(small):
    process = start(small, "killed_rank", 60, processes=2, workers=1, print_every=1)
    wait_for(process, "Epoch: [0][1/16]")
    ranks = children(process.pid)
    os.kill(ranks[-1], signal.SIGKILL)
    output = ends(process, 60)
    assert process.returncode == 1, output
    assert re.search(r"error: rank \d lost another rank of this run", output), output
    assert 'main.py", line' not in output
