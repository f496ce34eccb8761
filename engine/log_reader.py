"""Reads the figures of logs, ours or published ones. It imports neither torch nor numpy, so that it starts at once."""

import math
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median

# A line that holds none of these texts is skipped without a closer look. "poch" is in "Epoch: [" and in "epochs: 80".
MARKS = ("poch", "Validation Results", "Class Accuracy", ": dataset:", ": stopped, ")

TRAINING = re.compile(
    r"Epoch: \[(?P<epoch>\d{1,9})\]\[(?P<step>\d{1,9})/(?P<steps>\d{1,9})\], lr: (?P<lr>\S+)\s"
    r"(?:[^\[]*?Time (?P<time_now>\S+) \((?P<time>\S+)\)\s+Data (?P<wait_now>\S+) \((?P<wait>\S+)\))?"
    r"[^\[]*?Loss \S+ \((?P<loss>\S+)\)\s+Prec@1 \S+ \((?P<top1>\S+)\)\s+Prec@5 \S+ \((?P<top5>\S+)\)"
    r"(?:\s+Speed (?P<speed_now>\S+) V/s \((?P<speed>\S+)\) V/s)?"
)
RESULT = re.compile(
    r"Validation Results: Prec@1 (?P<val_top1>\S+) Prec@5 (?P<val_top5>\S+) Loss (?P<val_loss>\S+)"
    r"(?: Time (?P<val_time>\S+) Speed (?P<val_speed>\S+) V/s)?"
)
CLASS_ACCURACY = re.compile(r"Class Accuracy (?P<class_accuracy>\S+)%")
EPOCHS = re.compile(r": +(?:epochs: (\d+)$|epoch \d+/(\d+), |finished: (\d+) epochs)")  # epochs of the whole run

# A line of ours that was cut off or damaged. Other programs write "Epoch: [3] loss 1.2" or "Validation Results saved".
DAMAGED = re.compile(
    r"Epoch: \[\d*(?:\]?$|\]\[[\d/]*(?:\]?$|\],))|Epoch: \[.*\], lr: |Validation Results:(?: Prec@1| ?P?r?e?c?@?$)"
    r"|Class Accuracy (?:\S*%|[-+.\d]*$)"
)
STAMP = re.compile(r"\[(\d\d)/(\d\d) (\d\d):(\d\d):(\d\d)\]")
# A progress bar ends in \r. A line that a killed run left unfinished ends where the next run's time stamp begins.
NEXT_LINE = re.compile(r"\r|(?=(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d )?\[\d\d/\d\d \d\d:\d\d:\d\d\])")

# The figures of a row. The seconds and speeds of training are means over the steps of the epoch.
FIGURES = {
    "epoch": "from 0, as in the log",
    "lr": "learning rate",
    "loss": "training loss, mean of the epoch",
    "top1": "training Top-1, in percent",
    "top5": "training Top-5, in percent",
    "val_loss": "validation loss",
    "val_top1": "validation Top-1, in percent",
    "val_top5": "validation Top-5, in percent",
    "class_accuracy": "mean accuracy of the classes, in percent",
    "step": "the last logged step, from 0",
    "steps": "steps of an epoch",
    "clips": "clips of a step",
    "time": "seconds of a step",
    "wait": "seconds of a step that were spent waiting for data",
    "clips_per_second": "clips/s of training, with waiting for data",
    "speed": "clips/s of training, without waiting for data",
    "val_time": "seconds of a validation batch, with waiting for data",
    "val_speed": "videos/s of validation, without waiting for data",
    "hours": "hours from the start of the run to the last line of the epoch",
}
HALF_A_YEAR = timedelta(days=182.5)
LAST_EPOCHS = 5  # the speed of a run is the median of so many epochs


@dataclass
class Run:
    """What a log says about a run. ``rows`` has a row for each epoch, with the figures of ``FIGURES`` that were logged.

    ``hours`` are counted from the log's first time stamp to its last line with figures. They include validation and
    start-up. The pause between a stop or crash and the resumed run is not counted. It is recognised because a resumed
    run logs its settings again, or because the log goes back to an earlier step. Training that was repeated after a
    crash is counted twice. ``hours`` is ``None`` if the log has no time stamps.
    """

    rows: list[dict] = field(default_factory=list)
    total_epochs: int | None = None  # the epochs that the run is to have, if the log says so
    hours: float | None = None
    damaged: list[int] = field(default_factory=list)  # numbers of lines that look like ours but cannot be read

    @property
    def tested(self) -> list[dict]:
        return [row for row in self.rows if "val_top1" in row]

    @property
    def best(self) -> dict:
        """The first row with the highest validation Top-1, which is NaN only if all are; empty without validation."""
        return max(self.tested, key=lambda row: (row["val_top1"] == row["val_top1"], row["val_top1"]), default={})

    @property
    def trained(self) -> list[dict]:
        """The rows of training. The log of a test has one row, and it is not of training."""
        return [row for row in self.rows if "lr" in row]

    @property
    def epochs(self) -> int:
        """Finished epochs. An epoch is finished if it was validated, or if its last step or a later epoch was logged.

        The epochs before the log's first one count, because the run was then resumed from another run's checkpoint.
        """
        if not self.trained:
            return 0
        last = self.trained[-1]
        return last["epoch"] + ("val_top1" in last or last["step"] + 1 == last["steps"])

    def speed(self, name: str) -> float | None:
        """``clips_per_second`` or ``speed`` of the run: the median of the last ``LAST_EPOCHS`` epochs that have it."""
        values = [row[name] for row in self.rows if name in row][-LAST_EPOCHS:]
        return median(values) if values else None


def read_log(path: str | Path) -> list[dict]:
    """The rows of ``read_run``: a row for each epoch of a log, with the figures of ``FIGURES`` that were logged."""
    return read_run(path).rows


def read_run(path: str | Path) -> Run:
    """Read a log of ours, or a published one, which also has a second time stamp and much other output.

    Epochs start at 0. The training figures are the averages in the epoch's last line. If an epoch is logged twice (by a
    resumed run), its last figures count. The log of a test gives one row, of epoch 0, without figures of training.

    Errors: ``OSError`` if the file cannot be read.
    """
    reader = _Reader()
    with open(path, encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if reader.clock.now is None:
                reader.clock.restart(line)
            if any(mark in line for mark in MARKS):
                for part in NEXT_LINE.split(line):
                    reader.read(part.rstrip(), number)
    rows = [reader.rows[epoch] for epoch in sorted(reader.rows)]
    return Run(rows, reader.total_epochs, reader.clock.hours, reader.damaged)


class _Reader:
    """The state between the lines of a log."""

    def __init__(self) -> None:
        self.rows: dict[int, dict] = {}
        self.row: dict = {}
        self.longest = 0.0  # seconds of the epoch's longest step, without waiting
        self.total_epochs: int | None = None
        self.damaged: list[int] = []
        self.clock = _Clock()

    def read(self, line: str, number: int) -> None:
        try:
            self._read(line)
        except ValueError:
            self.damaged.append(number)

    def _read(self, line: str) -> None:
        """Errors: ``ValueError`` if the line is damaged."""
        if match := TRAINING.search(line):
            self._read_step(line, match)
        elif match := RESULT.search(line) or CLASS_ACCURACY.search(line):
            figures = _numbers(match)
            if not self.row and "val_top1" in figures:  # the log of a test
                self.row = self.rows[0] = {"epoch": 0}
            if self.row:
                self.row |= figures | self.clock.go_on(line)
        elif DAMAGED.search(line):
            raise ValueError(line)
        elif line.endswith(": dataset:"):  # the settings, which each start of a run logs, begin with this line
            self.clock.restart(line)
        elif ": stopped, " in line:
            self.clock.go_on(line)
        elif match := EPOCHS.search(line):
            self.total_epochs = int(match[match.lastindex])

    def _read_step(self, line: str, match: re.Match) -> None:
        figures = _numbers(match)
        place = {name: int(figures.pop(name)) for name in ("epoch", "step", "steps")}
        now = {name: figures.pop(f"{name}_now", math.nan) for name in ("time", "wait", "speed")}
        again = bool(self.row) and (self.row["epoch"], self.row.get("step", -1)) >= (place["epoch"], place["step"])
        if again:  # by a resumed run
            self.clock.restart(line)
        if again or self.row.get("epoch") != place["epoch"]:
            self.row, self.longest = {}, 0.0
            self.rows[place["epoch"]] = self.row
        compute = now["time"] - now["wait"]
        if self.longest < compute < math.inf and math.isfinite(now["speed"]):
            self.longest = compute  # the figures of the longest step suffer least from rounding
            self.row["clips"] = round(now["speed"] * compute)
        self.row |= place | figures | self.clock.go_on(line)
        if "clips" in self.row and figures["time"] > 0:
            self.row["clips_per_second"] = self.row["clips"] / figures["time"]


class _Clock:
    """Adds up the hours between time stamps, which have no year."""

    def __init__(self) -> None:
        self.now: tuple[int, ...] | None = None  # month, day, hour, minute, second of the last stamp
        self.seconds = 0.0

    @property
    def hours(self) -> float | None:
        return None if self.now is None else self.seconds / 3600

    def restart(self, line: str) -> None:
        """Go on from the line's time without counting the time before it."""
        self.now = _stamp(line) or self.now

    def go_on(self, line: str) -> dict[str, float]:
        """Count the time up to the line; returns the ``hours`` so far for a row, if the log has time stamps."""
        if self.now and (stamp := _stamp(line)):
            self.seconds += _seconds_between(self.now, stamp)
            self.now = stamp
        return {"hours": self.hours} if self.now else {}


def _stamp(line: str) -> tuple[int, ...] | None:
    """Month, day, hour, minute and second of a line; ``None`` if it has no time stamp."""
    match = STAMP.search(line)
    try:
        return match and datetime(2000, *map(int, match.groups())).timetuple()[1:6]
    except ValueError:
        return None


def _seconds_between(before: tuple[int, ...], after: tuple[int, ...]) -> float:
    """Seconds from one stamp to the next, which may be in the next year. If the clock was set back, 0."""
    year = 2000 if (2, 29) in (before[:2], after[:2]) else 2001  # 2000 has a 29 February
    passed = datetime(year, *after) - datetime(year, *before)
    if passed < -HALF_A_YEAR:
        passed += 2 * HALF_A_YEAR
    return max(passed.total_seconds(), 0.0)


def _numbers(match: re.Match) -> dict[str, float]:
    """Errors: ``ValueError`` if a text is no number."""
    return {name: float(text) for name, text in match.groupdict().items() if text is not None}
