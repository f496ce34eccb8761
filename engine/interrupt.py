"""SIGTERM and SIGINT: finish the step, save, leave."""

import os
import signal

EXIT_CODE = 75  # sysexits.h EX_TEMPFAIL: the run is whole, start it again with --resume auto
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The run was asked to stop, and its state is saved."""


class StopRequest:
    """While entered, the first SIGTERM or SIGINT sets ``requested``; a second one acts as it would have without."""

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
        # Not print(): the signal may have come in the middle of one.
        os.write(2, f"{name}: saving after this step; once more to stop at once\n".encode())
