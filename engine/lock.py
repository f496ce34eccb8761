"""A lock against a second process that would write the same files."""

import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.messages import one_line, reason

from .config import ConfigError


@contextmanager
def hold_lock(path: Path, folder: Path, flag: str, refusal: Callable[[str], str]) -> Iterator[None]:
    """A context in which no other process holds the lock ``path``, on this node or on another that shares its folder.

    A process takes the lock before it writes ``folder``, which the user chose with ``flag``.

    The lock belongs only to this process, not to the processes that it starts. The system releases the lock when the
    process ends for any reason. The lock file is then deleted, and so are the folders that were made for it
    and are empty.

    Errors: ``ConfigError`` if another process holds the lock, with the message ``refusal(holder)``, where ``holder``
    names the other process; ``ConfigError`` if the lock file cannot be written.
    """
    try:
        made = _make_folders(path.parent)
        descriptor = _open_and_lock(path, refusal)
    except OSError as error:
        message = f"{one_line(folder)}: cannot be written ({reason(error)}); free the place or choose another {flag}"
        raise ConfigError(message) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release, so a process that locks the deleted file can notice it
        os.close(descriptor)
        for empty in made:  # rmdir() removes only empty folders
            with suppress(OSError):
                empty.rmdir()


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns the folders that did not exist, the innermost first."""
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _open_and_lock(path: Path, refusal: Callable[[str], str]) -> int:
    """The file descriptor of the locked file.

    Errors: ``ConfigError`` if another process holds the lock.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
                return descriptor
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise ConfigError(refusal(holder or "it has just begun")) from None
        except FileNotFoundError:  # the process that held the lock has just finished
            pass
        os.close(descriptor)
