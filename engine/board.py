"""The TensorBoard curves of a run."""

import math
from pathlib import Path

from tensorboardX import SummaryWriter

from . import distributed


class Board:
    """Writes one point per epoch and figure into ``folder``. Only rank 0 writes."""

    def __init__(self, folder: Path):
        self.writer = SummaryWriter(str(folder)) if distributed.is_main() else None

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer:
            self.writer.close()

    def write(self, epochs: int, lr: float, trained: dict[str, float], tested: dict[str, float]) -> None:
        """Write the figures after ``epochs`` epochs. ``tested`` is empty after an epoch without a validation."""
        if not self.writer:
            return
        self.writer.add_scalar("lr", lr, epochs)
        for split, values in (("train", trained), ("val", tested)):
            for name, value in values.items():
                if math.isfinite(value):  # Prec@5 is not defined for few classes
                    self.writer.add_scalar(f"{split}/{name}", value, epochs)
        self.writer.flush()
