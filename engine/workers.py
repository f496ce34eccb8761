"""Loading processes: how they handle signals, how long the main process waits for their data, and how they end."""

import atexit
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader

from data import DataError

from .interrupt import SIGNALS

LOOK_EVERY = 5.0  # seconds between two checks of the loading processes
LONGEST_STOP = 30.0  # seconds that a process may be stopped, by SIGSTOP or a debugger
LONGEST_WAIT = 600.0  # seconds without a batch, for any reason


def leave_signals_to_the_main_process(_: int) -> None:
    """``worker_init_fn``: loading processes ignore Ctrl-C and a scheduler's SIGTERM.

    After such a signal, the main process finishes its step and needs their data. Because they ignore the signal,
    ``terminate()`` does not end them; ``kill_loading_processes`` does.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def batches(loader: DataLoader) -> Iterator[list[Tensor]]:
    """The batches of a loader that uses ``collate`` or ``collate_good``.

    If the loader has ``persistent_workers``, its processes stay for the next pass, unless an error ends this pass.

    Errors: ``DataError`` if a batch could not be read, if a loading process died, if it is stopped for ``LONGEST_STOP``
    seconds, or if it gives nothing for ``LONGEST_WAIT`` seconds.
    """
    watch = _Watch(_processes(loader._iterator))  # the processes of an earlier pass, if they stayed
    try:
        # Processes that stayed must answer before a new pass starts, so this call can also find a stopped process.
        iterator = watch.wait_for(lambda: _start(loader))
        _ignore_the_end_of_processes()
        watch.begin(_processes(iterator))
        while (batch := watch.wait_for(lambda: next(iterator, None))) is not None:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except Exception:
        watch.waiting_since = time.monotonic()
        iterator = loader._iterator = None  # the processes end now, not when the error object is deleted
        raise
    finally:
        watch.end(processes_stay=loader._iterator is not None)


def _start(loader: DataLoader) -> Iterator:
    """Start a pass.

    New processes inherit blocked signals. Ctrl-C would otherwise end one that does not ignore signals yet, with a
    traceback. A signal that arrives meanwhile reaches the main process afterwards.
    """
    if loader._iterator is not None:  # the processes of an earlier pass ignore signals
        return iter(loader)
    former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _processes(iterator: object) -> list[BaseProcess]:
    """The loading processes of a ``DataLoader``'s iterator. PyTorch has no public name for them.

    With ``persistent_workers``, the iterator is the loader's ``_iterator``, which is ``None`` before the first pass.
    Without workers the list is empty.
    """
    return list(getattr(iterator, "_workers", []))


class _Watch:
    """Checks loading processes while the main process waits for a batch, for the start of a pass, or for their end.

    The main process may be in a read without a timeout. It wakes up when the process that gives nothing is killed.
    """

    def __init__(self, processes: list[BaseProcess]):
        self.processes: list[BaseProcess] = []
        self.reason, self.waiting_since, self.ended = "", None, threading.Event()
        self.begin(processes)

    def begin(self, processes: list[BaseProcess]) -> None:
        """Start to check these processes."""
        new, self.processes = not self.processes, processes
        if new and processes:
            threading.Thread(target=self._look, daemon=True).start()

    def end(self, processes_stay: bool) -> None:
        """Stop checking: now if the processes stay, otherwise when they have ended."""
        self.waiting_since = None if processes_stay else time.monotonic()
        if processes_stay:
            self.ended.set()

    def wait_for(self, get: Callable[[], object]) -> object:
        """Call ``get`` and return its result.

        Errors: the errors of ``get``; ``DataError`` if a process was killed or failed meanwhile.
        """
        self.waiting_since = time.monotonic()
        try:
            result = get()
        except (RuntimeError, EOFError, OSError):
            self._refuse_the_dead(patience=1.0)  # a connection may break before its process is gone
            raise
        self.waiting_since = None
        self._refuse_the_dead()
        return result

    def _refuse_the_dead(self, patience: float = 0.0) -> None:
        """Check that no process was killed or failed, even if its data had already arrived.

        Errors: ``DataError`` with the reason.
        """
        if patience:
            connection.wait([process.sentinel for process in self.processes], patience)
        for process in self.processes:
            if process.exitcode:  # None means that it runs, 0 that it has finished
                how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"status {process.exitcode}"
                raise DataError(
                    self.reason
                    or f"a loading process died (pid {process.pid}, {how}); out of memory? lower --workers, or use 0 "
                    "to see the error itself"
                )

    def _look(self) -> None:
        stopped_since: float | None = None
        while any(process.is_alive() for process in self.processes) and not self.ended.wait(LOOK_EVERY):
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
    """Whether a process is stopped. Only Linux can tell; on other systems the result is False."""
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def kill_loading_processes() -> None:
    """Kill all loading processes, even stopped ones.

    Python would otherwise wait for stopped ones for ever when it exits.
    """
    _ignore_the_end_of_processes()
    for process in multiprocessing.active_children():
        process.kill()


# This runs before multiprocessing's own handler, which was registered earlier and waits for the processes.
atexit.register(kill_loading_processes)


def _ignore_the_end_of_processes() -> None:
    """Undo PyTorch's SIGCHLD handler.

    It raises an error anywhere in the main thread, even while a checkpoint is written.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
