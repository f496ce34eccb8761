"""Writes the log lines that hold figures, in the form of the published logs. ``log_reader`` reads them."""


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
