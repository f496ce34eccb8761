"""Programs run one after the other or at once, each with a time limit, all inside one time budget."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAST_LINES = 25  # of a failed program's output that are worth reading
POLL = 0.05  # s


class StepFailed(Exception):
    """A program that ended with an error or not within its limit. ``code``: its status, None if it was stopped."""

    def __init__(self, message: str, output: str, code: int | None = None):
        super().__init__(message)
        self.output, self.code = "\n".join(output.splitlines()[-LAST_LINES:]), code


class OutOfTime(Exception):
    """The time budget was used up before the program ended."""


class Steps:
    """Runs Python programs in ``folder``; after ``seconds`` in all, none is started and those that run are killed."""

    def __init__(self, folder: Path, seconds: float, threads: int):
        self.folder, self.start = folder, time.monotonic()
        self.deadline = self.start + seconds
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
        self.numbers = count()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    def give_up(self) -> None:
        """As if the time were used up: for Ctrl-C, which reaches none of the programs."""
        self.deadline = self.start

    def python(self, *words: object, limit: float, cwd: Path | None = None, kill_at: str | None = None) -> str:
        """What ``python *words`` prints, both streams together; ``limit`` in seconds.

        With ``kill_at``, the program and all it started get SIGKILL once this text is printed.
        Errors: ``StepFailed``, also if that text never comes; ``OutOfTime``.
        """
        end = time.monotonic() + limit
        if time.monotonic() >= self.deadline:
            raise OutOfTime
        # Not a pipe: a process that a program leaves behind may hold it open.
        log = self.folder / f"step_{next(self.numbers)}.txt"
        command = [sys.executable, "-W", "ignore", *map(str, words)]
        with open(log, "wb") as file:
            process = subprocess.Popen(
                command,
                cwd=cwd or self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us alone
            )
        try:
            while process.poll() is None:
                if kill_at and kill_at in _text(log):
                    return _text(log)
                if time.monotonic() >= self.deadline:
                    raise OutOfTime
                if time.monotonic() >= end:
                    raise StepFailed(f"no end after {limit:.0f} s", _text(log))
                time.sleep(POLL)
        finally:
            if process.poll() is None:
                kill_all(process.pid)
                process.wait()
        if process.returncode or kill_at:
            missing = f" before it printed {kill_at!r}" if kill_at else ""
            raise StepFailed(f"exit status {process.returncode}{missing}", _text(log), process.returncode)
        return _text(log)


def children(pid: int) -> list[int]:
    """The processes that a process started; none if it is gone. Linux."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lists = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
        return [int(child) for child in " ".join(lists).split()]
    return []


def kill_all(pid: int) -> None:
    """SIGKILL for a process and all it started, torchrun's processes too, which are in other sessions. Linux."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # it starts no others meanwhile
        started = children(pid)
        os.kill(pid, signal.SIGKILL)
        for child in started:
            kill_all(child)


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")
