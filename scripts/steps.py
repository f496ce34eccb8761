"""Runs Python programs, one or several at a time. Each has a time limit, and all share one time budget."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAST_LINES = 25  # lines of a failed program's output that are kept
POLL = 0.05  # s


class StepFailed(Exception):
    """A program failed or exceeded its time limit. ``code`` is its exit status, or None if it was stopped."""

    def __init__(self, message: str, output: str, code: int | None = None):
        super().__init__(message)
        self.output, self.code = "\n".join(output.splitlines()[-LAST_LINES:]), code


class OutOfTime(Exception):
    """The time budget ran out before the program ended."""


class Steps:
    """Runs Python programs in ``folder``.

    After ``seconds`` in total, it starts no more programs and kills running ones.
    """

    def __init__(self, folder: Path, seconds: float, threads: int):
        self.folder, self.start = folder, time.monotonic()
        self.deadline = self.start + seconds
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
        self.numbers = count()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def give_up(self) -> None:
        """End the time budget now. This is needed after Ctrl-C, because Ctrl-C does not reach the programs."""
        self.deadline = self.start

    def python(
        self,
        *words: object,
        limit: float,
        cwd: Path | None = None,
        kill_at: str | None = None,
        watch: Callable[[str], None] | None = None,
    ) -> str:
        """Run ``python *words`` for at most ``limit`` seconds; returns its output of both streams.

        With ``kill_at``, the program and all processes that it started get SIGKILL as soon as it prints this text. With
        ``watch``, the output so far is passed to this function whenever there is more of it, and ``limit`` is the
        longest time without more output.

        Errors: ``StepFailed``, also if that text never appears; ``OutOfTime``.
        """
        end = time.monotonic() + limit
        if time.monotonic() >= self.deadline:
            raise OutOfTime
        # The output goes to a file, because a process that a program leaves behind could keep a pipe open.
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
                start_new_session=True,  # Ctrl-C then reaches only this process
            )
        seen = 0
        try:
            while process.poll() is None:
                if watch and (size := log.stat().st_size) > seen:
                    seen, end = size, time.monotonic() + limit
                    watch(_text(log))
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
            if watch:
                watch(_text(log))
        if process.returncode or kill_at:
            missing = f" before it printed {kill_at!r}" if kill_at else ""
            raise StepFailed(f"exit status {process.returncode}{missing}", _text(log), process.returncode)
        return _text(log)


def children(pid: int) -> list[int]:
    """The child processes of a process. The list is empty if the process has ended. Linux only."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lists = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
        return [int(child) for child in " ".join(lists).split()]
    return []


def kill_all(pid: int) -> None:
    """Send SIGKILL to a process and all its descendants, also in other sessions (such as torchrun's). Linux only."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # it then starts no more processes
        started = children(pid)
        os.kill(pid, signal.SIGKILL)
        for child in started:
            kill_all(child)


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")
