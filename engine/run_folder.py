"""The files of a run: its folder ``net_runs/<run>/``, its log, and the lock against a second run of the same name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.messages import shown

from .config import ConfigError
from .lock import hold_lock

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
    """A context in which no other process can train the run (``hold_lock``).

    The lock file is next to the run's folder.

    Errors: ``ConfigError`` if another process trains the run, or if the lock file cannot be written.
    """

    def refusal(holder: str) -> str:
        return (
            f"run {folder.name} is being trained by another process ({holder}); choose another --run, or wait for its "
            "end"
        )

    with hold_lock(folder.with_name(f".{folder.name}.lock"), folder, "--run", refusal):
        yield
