"""Writes and reads the log lines that hold figures, in the form of the published logs."""

import re
from pathlib import Path

NUMBER = r"([-+.\deE]+|nan|inf)"
TRAINING = re.compile(
    rf"Epoch: \[(\d+)\]\[\d+/\d+\], lr: {NUMBER}\s.*Loss \S+ \({NUMBER}\)\s+Prec@1 \S+ \({NUMBER}\)"
    rf"\s+Prec@5 \S+ \({NUMBER}\)"
)
RESULT = re.compile(rf"Validation Results: Prec@1 {NUMBER} Prec@5 {NUMBER} Loss {NUMBER}")
CLASS_ACCURACY = re.compile(rf"Class Accuracy {NUMBER}%")


class Meter:
    """The last value, and the average of all values so far weighted by their counts."""

    def __init__(self):
        self.value = self.total = self.count = 0.0

    def update(self, value: float, count: float = 1.0) -> None:
        self.value = value
        self.total += value * count
        self.count += count

    @property
    def average(self) -> float:
        return self.total / self.count if self.count else 0.0


Means = tuple[float, float, float]  # loss, and Top-1 and Top-5 in percent


def training_line(
    epoch: int,
    step: int,
    steps: int,
    lr: float,
    now: Means,
    so_far: Means,
    times: Meter,
    waits: Meter,
    speed: Meter,
) -> str:
    """The line of a training step. ``now`` is for this step, ``so_far`` for the epoch up to this step.

    ``times`` are the seconds of a step. ``waits`` are the seconds of it that were spent waiting for data. ``speed`` is
    in videos/s.
    """
    return (
        f"Epoch: [{epoch}][{step}/{steps}], lr: {lr:.5f}\t"
        f"Time {times.value:.3f} ({times.average:.3f})\tData {waits.value:.3f} ({waits.average:.3f})\t"
        f"{_losses(now, so_far)}\tSpeed {speed.value:.3f} V/s ({speed.average:.4f}) V/s"
    )


def validation_line(batch: int, batches: int, now: Means, so_far: Means, times: Meter) -> str:
    """The line of a batch of a validation or test. ``now`` is for this batch, ``so_far`` for all batches up to it."""
    return f"Val: [{batch}/{batches}]\tTime {times.value:.3f} ({times.average:.4f})\t{_losses(now, so_far)}"


def _losses(now: Means, so_far: Means) -> str:
    return (
        f"Loss {now[0]:.4f} ({so_far[0]:.4f})\tPrec@1 {now[1]:.3f} ({so_far[1]:.3f})\t"
        f"Prec@5 {now[2]:.3f} ({so_far[2]:.3f})"
    )


def result_lines(result: dict[str, float], seconds: float, videos_per_second: float) -> str:
    """The two lines that end a validation or test, from its ``loss top1 top5 class_accuracy``.

    ``seconds`` is the mean time of a batch.
    """
    return (
        f"Validation Results: Prec@1 {result['top1']:.3f} Prec@5 {result['top5']:.3f} Loss {result['loss']:.5f} "
        f"Time {seconds:.4f} Speed {videos_per_second:.4f} V/s\n"
        f"Class Accuracy {result['class_accuracy']:.2f}%"
    )


def read_log(path: str | Path) -> list[dict]:
    """A row for each epoch of a log: ``epoch lr loss top1 top5 val_loss val_top1 val_top5 class_accuracy``.

    It reads our logs and the published logs, which also have a second time stamp and much other output. Epochs start at
    0. The training figures are the averages in the epoch's last line. Figures that were not logged are missing from the
    row. If an epoch is logged twice (by a resumed run), its last figures count.
    """
    rows: dict[int, dict] = {}
    row: dict = {}
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if match := TRAINING.search(line):
                epoch = int(match[1])
                if row.get("epoch") != epoch:
                    row = rows[epoch] = {"epoch": epoch}
                row |= dict(zip(("lr", "loss", "top1", "top5"), map(float, match.groups()[1:]), strict=True))
            elif match := RESULT.search(line):
                if not row:  # the log of a test
                    row = rows[0] = {"epoch": 0}
                row |= dict(zip(("val_top1", "val_top5", "val_loss"), map(float, match.groups()), strict=True))
            elif (match := CLASS_ACCURACY.search(line)) and row:
                row["class_accuracy"] = float(match[1])
    return [rows[epoch] for epoch in sorted(rows)]
