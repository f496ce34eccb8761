"""The place of a run: ``net_runs/<run>/``, its log, and the lock that keeps a second run of the same name out."""

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
    """The folder of a run. Errors: ``ConfigError`` for a name that leads out of ``net_runs/``."""
    parts = Path(name).parts
    if not parts or name.startswith("/") or ".." in parts or not name.isprintable():
        raise ConfigError(f"--run {shown(name)}: its files would not lie in {RUNS}/; give a plain name")
    return RUNS / name


def log_file(name: str) -> Path:
    return LOGS / f"{name}.log"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process, on this node or another one that sees the folder, trains the run meanwhile.

    The system holds the lock for this process alone (not for the loading processes that it starts) and drops it when
    the process ends, however it ends. The file that carries it lies beside the run's folder, and goes with the lock.
    Errors: ``ConfigError`` if another process holds it, or if the place cannot be written.
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
        path.unlink(missing_ok=True)  # still under the lock: who waits for the file finds that it is another one
        os.close(descriptor)
        for empty in made:  # of a run that never started
            with suppress(OSError):
                empty.rmdir()


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns the ones that were not there, the innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _open_and_lock(path: Path, folder: Path) -> int:
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
        except FileNotFoundError:  # its owner has just finished
            pass
        os.close(descriptor)
