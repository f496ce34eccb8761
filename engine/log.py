"""Log files in the form of the published ones, and a reader for both."""

import logging
import re
import sys
from contextlib import suppress
from pathlib import Path

from torch.utils.data import DataLoader
from tqdm import tqdm

from . import distributed
from .config import ConfigError
from .workers import batches

LOGGER = logging.getLogger("motion")


class Meter:
    """The last value and the average over all so far, each value weighted by its count."""

    def __init__(self):
        self.value = self.total = self.count = 0.0

    def update(self, value: float, count: float = 1.0) -> None:
        self.value = value
        self.total += value * count
        self.count += count

    @property
    def average(self) -> float:
        return self.total / self.count if self.count else 0.0


class _ProgramLine(logging.Filter):
    """Name the program and the line of it that is running, as the published logs do, wherever the call stands."""

    def filter(self, record: logging.LogRecord) -> bool:
        frame, main = sys._getframe(), getattr(sys.modules["__main__"], "__file__", None)
        while frame is not None and frame.f_code.co_filename != main:
            frame = frame.f_back
        if frame is not None:
            record.filename, record.lineno = Path(main).name, frame.f_lineno
        return True


class _Console(logging.Handler):
    """Standard output, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _File(logging.FileHandler):
    """A log file; a line that cannot be written ends the run."""

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
    """The batches of ``loader`` under a bar: on a terminal, of the first process; none in a pipe."""
    hidden = None if distributed.is_main() else True  # None: tqdm looks whether it writes to a terminal
    return tqdm(batches(loader), total=len(loader), unit="batch", desc=what, leave=False, disable=hidden)


class _Buffer(logging.Handler):
    """Lines that were said before there was a log file."""

    def __init__(self):
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def setup(enabled: bool = True, file_later: bool = False) -> None:
    """Send log lines to standard output, and keep them if ``open_file`` follows; silence them if not ``enabled``."""
    LOGGER.setLevel(logging.INFO if enabled else logging.CRITICAL)
    LOGGER.propagate = False
    LOGGER.handlers.clear()
    _add(_Console())
    if file_later:
        _add(_Buffer())


def open_file(log_file: Path) -> None:
    """Append log lines to a file from now on, those said so far among them, unless they are silenced."""
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
    for line in message.splitlines():
        LOGGER.info(line)


def read_log(path: str | Path) -> list[dict]:
    """What a log says of each epoch: a row ``epoch lr loss top1 top5 val_loss val_top1 val_top5 class_accuracy``.

    Reads our logs and the published ones (which carry a second time stamp and much other output). Epochs count from
    0; training figures are the averages of the epoch's last line; keys of what was not logged are absent. An epoch
    that stands there twice (a resumed run) keeps its last figures.
    """
    number = r"([-+.\deE]+|nan|inf)"
    train = re.compile(
        rf"Epoch: \[(\d+)\]\[\d+/\d+\], lr: {number}\s.*Loss \S+ \({number}\)\s+Prec@1 \S+ \({number}\)"
        rf"\s+Prec@5 \S+ \({number}\)"
    )
    result = re.compile(rf"Validation Results: Prec@1 {number} Prec@5 {number} Loss {number}")
    class_accuracy = re.compile(rf"Class Accuracy {number}%")
    rows: dict[int, dict] = {}
    row: dict = {}
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if match := train.search(line):
                epoch = int(match[1])
                if row.get("epoch") != epoch:
                    row = rows[epoch] = {"epoch": epoch}
                row |= dict(zip(("lr", "loss", "top1", "top5"), map(float, match.groups()[1:]), strict=True))
            elif match := result.search(line):
                if not row:  # an evaluation alone
                    row = rows[0] = {"epoch": 0}
                row |= dict(zip(("val_top1", "val_top5", "val_loss"), map(float, match.groups()), strict=True))
            elif (match := class_accuracy.search(line)) and row:
                row["class_accuracy"] = float(match[1])
    return [rows[epoch] for epoch in sorted(rows)]
