"""Handles SIGTERM and SIGINT: the run finishes its step, saves and exits."""

import os
import signal

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h; nothing is lost, and --resume auto continues the run
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The run was asked to stop, and its state is saved."""


class StopRequest:
    """A context in which the first SIGTERM or SIGINT only sets ``requested``. A second signal has its usual effect."""

    def __init__(self):
        self.requested = False
        self._former: dict = {}

    def __enter__(self) -> "StopRequest":
        self._former = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _handle(self, number: int, frame: object) -> None:
        self.requested = True
        self.__exit__()
        name = signal.Signals(number).name
        # print() is not safe here, because the signal may interrupt another print().
        os.write(2, f"{name}: saving after this step; send it again to stop at once\n".encode())
