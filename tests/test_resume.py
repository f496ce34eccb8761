"""Runs survive accidents: kills, signals, full disks, and nodes that restart."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import quick_python
import torch
from kill_and_resume import kill_and_resume, last_result, progress_of, start, wait_for, weights
from toy_run import ROOT, make_dataset, quick_flags, run_inside

from engine import checkpoint
from engine.config import ConfigError
from engine.interrupt import EXIT_CODE
from engine.train import step_seed


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments(tmp_path, processes):
    kill_and_resume(tmp_path, kills=2, processes=processes, seed=processes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with a dataset and a run of three epochs of four steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_dataset(folder)
    process = start(folder, "undisturbed", 3, python=quick_python.executable())
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(undisturbed, number):
    """The whole process group gets the signal, as with Ctrl-C, so the loading processes get it too."""
    run = number.name
    process = start(undisturbed, run, 3, save_every="none", workers=1, print_every=1)
    wait_for(process, "Epoch: [1][0/4]")
    os.killpg(process.pid, number)
    output = process.communicate()[0]
    assert process.returncode == EXIT_CODE, output
    assert f"{number.name}: saving after this step" in output and "Traceback" not in output, output
    epochs, steps = progress_of(undisturbed, run)
    assert epochs == 1 and 1 <= steps <= 4
    assert f"stopped, 1 epochs and {steps} steps done" in output and "go on with --resume auto" in output
    process = start(undisturbed, run, 3, python=quick_python.executable())
    output = process.communicate()[0]
    assert process.returncode == 0 and f"epoch_1_step_{steps}_checkpoint.pth.tar: 1 epochs and" in output, output
    assert last_result(undisturbed, run) == last_result(undisturbed, "undisturbed")
    a, b = (weights(undisturbed, name, 3) for name in ("undisturbed", run))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert progress_of(undisturbed, run) == (3, 0)  # checkpoints within epochs are deleted


def test_a_signal_during_validation_is_no_loss(undisturbed):
    process = start(undisturbed, "val", 3, save_every="none")
    wait_for(process, "Val: [0/")
    os.kill(process.pid, signal.SIGTERM)
    output = process.communicate()[0]
    # The signal comes during validation or, if that is already over, during the first step of the next epoch.
    assert process.returncode == EXIT_CODE and progress_of(undisturbed, "val") >= (0, 4), output
    process = start(undisturbed, "val", 3, python=quick_python.executable())
    assert process.wait() == 0 and last_result(undisturbed, "val") == last_result(undisturbed, "undisturbed")


def test_two_processes_stop_together(undisturbed):
    process = start(undisturbed, "two", 40, processes=2, save_every="none", print_every=1)
    wait_for(process, "Epoch: [1][0/4]")
    os.kill(process.pid, signal.SIGTERM)  # to torchrun, which passes it on
    output = process.communicate()[0]
    assert process.returncode != 0 and output.count("stopped, ") >= 1, output
    assert progress_of(undisturbed, "two") >= (1, 1)


def test_a_log_of_an_interrupted_epoch_averages_all_of_it(undisturbed):
    """The averages in the last line of an epoch are the same with and without an interruption."""
    lines = (undisturbed / "logs" / "undisturbed.log").read_text()
    killed = (undisturbed / "logs" / "SIGTERM.log").read_text()
    last = re.compile(r"Epoch: \[1\]\[3/4\].*(Loss \S+ \(\S+\)\tPrec@1 \S+ \(\S+\))")
    assert last.findall(lines) == last.findall(killed)[-1:] != []


def test_every_step_of_every_process_draws_from_a_seed_of_its_own():
    seeds = [step_seed(s, e, i, r) for s in (0, 1) for e in range(5) for i in range(5) for r in range(3)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)


def content(epoch: int, step: int = 0, value: float = 0.0) -> dict:
    return {"epoch": epoch, "step": step, "value": torch.tensor(value)}


def test_what_is_kept(tmp_path):
    for epoch, step in [(0, 2), (0, 4), (1, 0), (1, 2), (2, 0), (3, 0), (3, 1), (3, 3)]:
        checkpoint.save(tmp_path, content(epoch, step), is_best=epoch == 1 and step == 0, keep=2)
    names = {checkpoint.BEST, *(checkpoint.file_name(*key) for key in [(2, 0), (3, 0), (3, 3)])}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert torch.load(tmp_path / checkpoint.BEST, weights_only=True)["epoch"] == 1
    assert checkpoint.newest(tmp_path).name == checkpoint.file_name(3, 3)


def test_a_full_disk_leaves_the_former_checkpoint_whole(tmp_path):
    checkpoint.save(tmp_path, content(1, value=1.0), is_best=True, keep=2)
    path = tmp_path / checkpoint.file_name(2)
    (tmp_path / f"{path.name}.part").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"epoch_2_checkpoint.pth.tar: cannot be written \(.*; make room or"):
        checkpoint.save(tmp_path, content(2, value=2.0), is_best=True, keep=2)
    assert {file.name for file in tmp_path.iterdir()} == {checkpoint.BEST, checkpoint.file_name(1)}
    for file in tmp_path.iterdir():
        assert torch.load(file, weights_only=True)["value"] == 1.0


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    dataset = make_dataset(tmp_path, per_class=2)
    for name, place in (("net_runs", "net_runs/x"), ("logs", "logs/x.log")):
        (tmp_path / name).write_text("a file where a folder should be")
        result = run_inside("main.py", dataset, "tsn_tiny", "--run", "x", *quick_flags(), cwd=tmp_path)
        assert result.returncode == 1 and "Traceback" not in result.stdout, result.stdout
        errors = [line for line in result.stdout.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and f"error: {place}: cannot be written (" in errors[0], errors
        (tmp_path / name).unlink()


def test_a_full_log_disk_is_one_line(tmp_path):
    dataset = make_dataset(tmp_path, per_class=2)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "x.log").symlink_to("/dev/full")
    result = run_inside("main.py", dataset, "tsn_tiny", "--run", "x", *quick_flags(), cwd=tmp_path)
    assert result.returncode == 1 and "error: logs/x.log: cannot be written (" in result.stdout, result.stdout
    assert "Traceback" not in result.stdout


def test_parts_of_a_killed_writer_are_cleared(tmp_path):
    dataset = make_dataset(tmp_path, per_class=2)
    part = tmp_path / "net_runs" / "x" / f"{checkpoint.file_name(1)}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half a file")
    flags = quick_flags(epochs=1)
    result = run_inside("main.py", dataset, "tsn_tiny", "--run", "x", "--resume", "auto", *flags, cwd=tmp_path)
    assert result.returncode == 0 and not part.exists(), result.stdout


def agents(
    folder, run: str, nodes: int, epochs: int, restarts: int = 0, python: str = sys.executable
) -> list[subprocess.Popen]:
    """One torchrun agent for each node, each with one process. They connect through the loopback device.

    Each agent writes to its own file. Pipes could block, because nobody reads the second while waiting for the first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = quick_flags(epochs=epochs, global_batch_size=2, save_every=1, dropout=0.5)
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", run]
    command = [python, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes", str(nodes), *rendezvous]
    command += ["--nproc_per_node", "1", "--max_restarts", str(restarts), "--local_addr", "127.0.0.1", "--"]
    command += [str(ROOT / "main.py"), "small.yaml", "tsm_tiny", "--run", run, "--resume", "auto", *flags]
    # As in scripts/launch.sh.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    started = []
    for node in range(nodes):
        with open(folder / f"{run}_{node}.txt", "w") as output:
            pipes = {"stdout": output, "stderr": subprocess.STDOUT}
            started.append(subprocess.Popen(command, cwd=folder, env=environment, **pipes))
    return started


def finish(folder, run: str, started: list[subprocess.Popen]) -> list[str]:
    """The outputs of the agents of a run, which must end without an error."""
    codes = [agent.wait(timeout=120) for agent in started]
    outputs = [(folder / f"{run}_{node}.txt").read_text() for node in range(len(started))]
    assert codes == [0] * len(started), "\n".join(outputs)
    return outputs


def test_two_nodes_and_a_restart(tmp_path):
    """Two agents share a run. If a process of one agent is killed, both agents restart, and the run continues."""
    make_dataset(tmp_path)
    calm = agents(tmp_path, "calm", nodes=2, epochs=3, python=quick_python.executable())
    outputs = finish(tmp_path, "calm", calm)
    assert sum("batch: 2 processes x 1 clips x 1 accumulated = 2" in output for output in outputs) == 1

    restarted = agents(tmp_path, "restarted", nodes=2, epochs=3, restarts=3)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "net_runs").glob("restarted/*_checkpoint.pth.tar")):
        assert time.monotonic() < deadline and all(agent.poll() is None for agent in restarted)
        time.sleep(0.02)
    children = f"/proc/{restarted[0].pid}/task/{restarted[0].pid}/children"
    with open(children) as file:
        os.kill(int(file.read().split()[0]), signal.SIGKILL)
    finish(tmp_path, "restarted", restarted)
    assert "resumed from" in (tmp_path / "logs" / "restarted.log").read_text()
    assert last_result(tmp_path, "restarted") == last_result(tmp_path, "calm")
