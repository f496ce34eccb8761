"""The files of a run: its folder ``net_runs/<run>/``, its log, and the lock against a second run of the same name."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.messages import shown

from .config import ConfigError

RUNS, LOGS = Path("net_runs"), Path("logs")


def run_folder(name: str) -> Path:
    """The folder of a run.

    Errors: ``ConfigError`` if the name leads out of ``net_runs/``.
    """
    parts = Path(name).parts
    if not parts or name.startswith("/") or ".." in parts or not name.isprintable():
        raise ConfigError(f"--run {shown(name)}: its files would not lie in {RUNS}/; give a plain name")
    return RUNS / name


def log_file(name: str) -> Path:
    return LOGS / f"{name}.log"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A context in which no other process can train the run, on this node or on another node that shares the folder.

    The lock belongs only to this process, not to the loading processes that it starts. The system releases the lock
    when the process ends for any reason. The lock file is next to the run's folder and is deleted with the lock.

    Errors: ``ConfigError`` if another process holds the lock, or if the file cannot be written.
    """
    path = folder.with_name(f".{folder.name}.lock")
    try:
        made = _make_folders(path.parent)
        descriptor = _open_and_lock(path, folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error}); free the place or choose another --run") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release, so a process that locks the deleted file can notice it
        os.close(descriptor)
        for empty in made:  # rmdir() removes only empty folders, of a run that never started
            with suppress(OSError):
                empty.rmdir()


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns the folders that did not exist, the innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _open_and_lock(path: Path, folder: Path) -> int:
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
            raise ConfigError(
                f"run {folder.name} is being trained by another process ({holder or 'it has just begun'}); choose "
                "another --run, or wait for its end"
            ) from None
        except FileNotFoundError:  # the process that held the lock has just finished
            pass
        os.close(descriptor)
