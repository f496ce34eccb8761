"""The stand-in for ``python`` behaves like ``python``."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import quick_python

PROGRAM = "import os, sys; print(sys.argv, sys.path[0], os.getcwd(), os.environ['WORD'], sys.stdin.read(), __name__)"


@pytest.mark.parametrize(
    "words",
    [
        ["-c", PROGRAM, "a", "b c"],
        ["-W", "ignore", "-u", "program.py", "a"],
        ["folder/program.py"],
        ["-m", "folder.program", "--flag"],
        ["-m", "folder.nothing"],
        ["-c", "import sys; sys.exit('last words')"],
        ["-c", "import sys; sys.exit(75)"],
        ["-c", "import atexit, threading; atexit.register(print, 1); threading.Timer(0.2, print, [2]).start(); 1 / 0"],
        ["-c", "import os; os.kill(os.getpid(), 9)"],
        ["-c", "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"],
        ["-W", "error", "-c", "import warnings; warnings.warn('a warning')"],
        ["-c", "import sys; print({'ops', 'models', 'data', 'engine', 'reports', 'toy_run'} & set(sys.modules))"],
    ],
)
def test_it_does_what_python_does(words, tmp_path):
    (tmp_path / "folder").mkdir()
    for file in ("program.py", "folder/program.py"):
        (tmp_path / file).write_text(PROGRAM)
    outcomes = []
    for python in (sys.executable, quick_python.executable()):
        environment = os.environ | {"WORD": "of the environment", "PYTHONPATH": str(tmp_path)}
        pipes = {"cwd": tmp_path, "env": environment, "input": "the input", "text": True, "capture_output": True}
        done = subprocess.run([python, *words], **pipes, timeout=60)
        outcomes.append((done.returncode, done.stdout, done.stderr.splitlines()[-1:]))
    (status, output, error), found = outcomes
    assert found[:2] == (status, output)
    assert found[2] == error or error[0].endswith(found[2][0].partition(": ")[2])  # "python: " before -m's errors


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, f"process {pid} still runs"
        time.sleep(0.02)


def test_signals_reach_the_program_and_its_end_follows_the_client():
    code = "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: os._exit(7)); "
    code += "print(os.getpid(), flush=True); time.sleep(60)"
    for number, status in ((signal.SIGTERM, 7), (signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)):
        words = [quick_python.executable(), "-c", code]
        client = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        program = int(client.stdout.readline())
        assert program != client.pid
        client.send_signal(number)
        assert client.wait(timeout=10) == status
        wait_until_gone(program)


def test_two_programs_draw_different_numbers():
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    drawn = [subprocess.check_output([quick_python.executable(), "-c", code], text=True).split() for _ in range(2)]
    assert len({number for numbers in drawn for number in numbers}) == 4
