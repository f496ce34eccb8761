"""Loading processes: what signals mean to them, how long their data is waited for, and their end."""

import atexit
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader

from data import DataError

from .interrupt import SIGNALS

LOOK_EVERY = 5.0  # seconds between two looks at the loading processes while no batch comes
LONGEST_STOP = 30.0  # seconds that one may stand still, by SIGSTOP or a debugger
LONGEST_WAIT = 600.0  # seconds without a batch, whatever the reason


def leave_signals_to_the_main_process(_: int) -> None:
    """``worker_init_fn``: Ctrl-C and a scheduler's SIGTERM reach loading processes too, whose data the step needs.

    So ``terminate()`` does not end them; ``kill_loading_processes`` does.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def batches(loader: DataLoader) -> Iterator[list[Tensor]]:
    """The batches of a loader that uses ``collate`` or ``collate_good``.

    Errors: the ``DataError`` of a batch that could not be read, and one for a loading process that died, stands still
    for ``LONGEST_STOP`` seconds or gives nothing for ``LONGEST_WAIT`` seconds.
    """
    others = multiprocessing.active_children()
    iterator = iter(loader)
    _ignore_the_end_of_processes()
    watch = _Watch([process for process in multiprocessing.active_children() if process not in others])
    try:
        while True:
            watch.waiting_since = time.monotonic()
            try:
                batch = next(iterator, None)
            except (RuntimeError, EOFError, OSError):
                watch.refuse_the_dead(patience=1.0)  # a connection may break before its process is gone
                raise
            watch.waiting_since = None
            watch.refuse_the_dead()
            if batch is None:
                return
            if isinstance(batch, DataError):
                del iterator  # its processes end now, not when this error is forgotten
                raise batch
            yield batch
    finally:
        watch.waiting_since = time.monotonic()  # for their end


class _Watch:
    """Looks at loading processes, as long as there are any, while the main process waits for a batch or for their end.

    The main process may be in a read without a timeout. Killing what gives nothing any more wakes it.
    """

    def __init__(self, processes: list[BaseProcess]):
        self.processes, self.reason = processes, ""
        self.waiting_since: float | None = None
        threading.Thread(target=self._look, daemon=True).start()

    def refuse_the_dead(self, patience: float = 0.0) -> None:
        """Errors: ``DataError`` if one was killed or failed, whether or not its data was there already."""
        if patience:
            connection.wait([process.sentinel for process in self.processes], patience)
        for process in self.processes:
            if process.exitcode:  # neither None, it lives, nor 0, it is done
                how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"status {process.exitcode}"
                raise DataError(
                    self.reason
                    or f"a loading process died (pid {process.pid}, {how}); out of memory? lower --workers, or use 0 "
                    "to see the error itself"
                )

    def _look(self) -> None:
        stopped_since: float | None = None
        while any(process.is_alive() for process in self.processes):
            time.sleep(LOOK_EVERY)
            now, stopped = time.monotonic(), [process for process in self.processes if _stands_still(process)]
            stopped_since = (stopped_since or now) if stopped and self.waiting_since else None
            if stopped_since and now - stopped_since >= LONGEST_STOP:
                pids = " ".join(str(process.pid) for process in stopped)
                self.reason = (
                    f"a loading process stood still for {now - stopped_since:.0f} s (pid {pids}; stopped by SIGSTOP or "
                    "a debugger?) and was killed; start again with --resume auto"
                )
            elif self.waiting_since and now - self.waiting_since >= LONGEST_WAIT:
                stopped = self.processes
                self.reason = (
                    f"the loading processes gave no batch for {now - self.waiting_since:.0f} s and were killed; does "
                    "the storage of the frames answer? --workers 0 waits without a limit"
                )
            if self.reason:
                for process in stopped:
                    process.kill()


def _stands_still(process: BaseProcess) -> bool:
    """Whether a process is stopped. Linux tells it; elsewhere the answer is no."""
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def kill_loading_processes() -> None:
    """End them, also those that stand still: without it Python waits for them at its own end, for ever."""
    _ignore_the_end_of_processes()
    for process in multiprocessing.active_children():
        process.kill()


# It runs before multiprocessing's own, which was registered earlier and waits.
atexit.register(kill_loading_processes)


def _ignore_the_end_of_processes() -> None:
    """Undo PyTorch's SIGCHLD handler: it raises wherever the main thread is, also while a checkpoint is written."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
