"""Loading processes share the list with the main process; the benchmark that measures it can tell the difference."""

import csv
import multiprocessing
import os
import subprocess
from collections.abc import Callable

import pytest
import quick_python
from toy_run import ROOT

from benchmarks.memory import memory
from data import read_list

fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def long_list(tmp_path_factory):
    file = tmp_path_factory.mktemp("list") / "long.txt"
    file.write_text("".join(f"a folder/video {i} {i % 50 + 1} {i % 174}\n" for i in range(100_000)))
    return read_list(file, 174)


def growth(work: Callable[[], object]) -> float:
    """The memory in MB that a forked process takes for itself while it works."""
    receiver, sender = fork.Pipe(duplex=False)

    def measured() -> None:
        before = memory("self")[1]
        work()
        sender.send(memory("self")[1] - before)

    process = fork.Process(target=measured)
    process.start()
    sender.close()
    size = receiver.recv()
    process.join()
    return size


def test_a_forked_process_copies_no_list(long_list):
    """From a Python list of these videos, a process copies nearly all pages: 24 MB."""
    plain = list(long_list)
    assert growth(lambda: [0 for i in range(len(plain)) if plain[i] is None]) > 10
    assert growth(lambda: [0 for i in range(len(plain)) if long_list[i] is None]) < 2


def test_the_benchmark_of_memory(tmp_path):
    words = ["--videos", 400, "--workers", 2, "--epochs", 2, "--samples", 2, "--out", tmp_path / "memory.csv"]
    command = [quick_python.executable(), "-m", "benchmarks.memory", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    result = subprocess.run(command, cwd=ROOT, env=environment, text=True, timeout=120, **pipes)
    assert result.returncode == 0, result.stdout
    assert "| list | MB of | first batch | epoch 1 | epoch 2 |" in result.stdout
    with (tmp_path / "memory.csv").open() as file:
        rows = list(csv.DictReader(file))
    for form in "arrays", "tuples":
        mine = [row for row in rows if row["form"] == form]
        assert [float(row["epochs"]) for row in mine] == [0.25, 0.5, 1, 1.5, 2]
        for row in mine:  # a loading process shares its imports, so it takes less alone than with its share of them
            assert 0 < float(row["worker"]) < float(row["total"]) / 2 < 2000
    drawn = [quick_python.executable(), "-m", "figs.draw_memory", "--samples", "memory.csv", "--out", "memory.png"]
    result = subprocess.run(drawn, cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)}, text=True, **pipes)
    assert result.returncode == 0 and (tmp_path / "memory.png").stat().st_size > 10_000, result.stdout
