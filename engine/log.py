"""Sends log lines to standard output and to the log file, and shows the progress bar."""

import logging
import sys
from contextlib import suppress
from pathlib import Path

from torch.utils.data import DataLoader
from tqdm import tqdm

from . import distributed
from .config import ConfigError
from .workers import batches

LOGGER = logging.getLogger("motion")


class _ProgramLine(logging.Filter):
    """Give each record the program's file name and the line that runs in this file, as in the published logs.

    Without this filter, the record would name the file and line that called ``info``.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        frame, main = sys._getframe(), getattr(sys.modules["__main__"], "__file__", None)
        while frame is not None and frame.f_code.co_filename != main:
            frame = frame.f_back
        if frame is not None:
            record.filename, record.lineno = Path(main).name, frame.f_lineno
        return True


class _Console(logging.Handler):
    """Writes to standard output. If there is a progress bar, the line appears above it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _File(logging.FileHandler):
    """A log file. An error while writing ends the run.

    Errors: ``ConfigError``.
    """

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8")
        self.path = path

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        LOGGER.removeHandler(self)
        with suppress(OSError):
            self.close()
        raise ConfigError(f"{self.path}: cannot be written ({error}); make room, then --resume auto") from error


def progress(loader: DataLoader, what: str) -> tqdm:
    """The batches of ``loader``, with a progress bar. Only rank 0 shows the bar, and only on a terminal."""
    hidden = None if distributed.is_main() else True  # with None, tqdm hides the bar if the output is not a terminal
    return tqdm(batches(loader), total=len(loader), unit="batch", desc=what, leave=False, disable=hidden)


class _Buffer(logging.Handler):
    """Keeps the lines that are logged before there is a log file."""

    def __init__(self):
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def setup(enabled: bool = True, file_later: bool = False) -> None:
    """Send log lines to standard output. If ``enabled`` is false, they go nowhere.

    If ``file_later`` is true, the lines are also kept until ``open_file`` writes them to a file.
    """
    LOGGER.setLevel(logging.INFO if enabled else logging.CRITICAL)
    LOGGER.propagate = False
    LOGGER.handlers.clear()
    _add(_Console())
    if file_later:
        _add(_Buffer())


def open_file(log_file: Path) -> None:
    """Append the kept lines and all later ones to a file. If logging is not enabled, this does nothing.

    Errors: ``ConfigError`` if the file cannot be written.
    """
    (buffer,) = (handler for handler in LOGGER.handlers if isinstance(handler, _Buffer))
    LOGGER.removeHandler(buffer)
    if not LOGGER.isEnabledFor(logging.INFO):
        return
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        file = _File(log_file)
    except OSError as error:
        remedy = "free the place or choose another --run"
        raise ConfigError(f"{log_file}: cannot be written ({error}); {remedy}") from None
    _add(file)
    for record in buffer.records:
        file.emit(record)


def _add(handler: logging.Handler) -> None:
    form = "[%(asctime)s][%(levelname)s] %(filename)s: %(lineno)3d: %(message)s"
    handler.setFormatter(logging.Formatter(form, "%m/%d %H:%M:%S"))
    handler.addFilter(_ProgramLine())
    LOGGER.addHandler(handler)


def info(message: str) -> None:
    """Log a message. Each line of it becomes one log line. An empty message logs nothing."""
    for line in message.splitlines():
        LOGGER.info(line)
