"""The TensorBoard files of a run: curves, sample clips, confusion matrices and hyper-parameters."""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import torch
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torch.nn.functional import interpolate, pad

from data.modality import Modality
from reports.pictures import confusion_pixels

from . import distributed
from .config import ConfigError
from .interrupt import Stopped
from .state import TrainingState

CLIPS, GRID_WIDTH = 4, 1792  # of the grid of sample clips: rows; pixels, as 8 frames of 224
EPOCH = 1000  # the length of an epoch on the axis of the steps, for any batch size
FLUSH_SECONDS = 60


class Board:
    """Writes the figures of each epoch into ``folder``, and those of each printed step into ``folder/steps``.

    ``state`` is the start of this process: TensorBoard hides the points that an earlier process of the run has written
    beyond it. ``steps`` is the number of steps of an epoch. ``settings`` are the run's. Only rank 0 writes.

    Errors: all methods raise ``ConfigError`` if a file cannot be written.
    """

    def __init__(self, folder: Path, settings: dict, state: TrainingState, steps: int):
        self.folder, self.settings, self.steps = folder, settings, steps
        self.clips: tuple[Tensor, Modality] | None = None  # of the first batch
        self.final: dict[str, float] = {}  # figures of the newest validation, and the best accuracy
        self.active = distributed.is_main()
        if self.active:
            # TensorBoard hides points of a whole folder, and the two axes differ. Therefore there are two folders.
            self.epoch_file = _EventFile(folder, state.epoch + 1)
            self.step_file = _EventFile(folder / "steps", self._place(state) + 1)

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if not self.active:
            return
        ended = kind in (None, Stopped)
        with nullcontext() if ended else suppress(ConfigError):  # the first error is the one to report
            self.epoch_file.close()
            self.step_file.close()
        if ended and self.final:
            self._write_hyper_parameters()

    def keep_clips(self, clips: Tensor, modality: Modality) -> None:
        """Keep a few normalised clips (N, T, C, H, W) of the first batch. ``write_step`` writes them."""
        if self.active and self.clips is None:
            self.clips = clips[:CLIPS].to("cpu", copy=True), modality

    def write_step(
        self, state: TrainingState, lr: float, means: tuple[float, float, float], speed: float, unwaited: float
    ) -> None:
        """Write the figures of a step, which ``state`` already counts, and once the sample clips.

        ``means`` are loss, Top-1 and Top-5. ``speed`` is in clips/s, ``unwaited`` without waiting for data.
        """
        if not self.active:
            return
        figures = dict(zip(("loss", "top1", "top5"), means, strict=True))
        figures |= {"lr": lr, "clips_per_second": speed, "clips_per_second_without_waiting": unwaited}
        self.step_file.add_figures("train_step", figures, self._place(state))
        if self.clips is not None and len(self.clips[0]):
            clips, modality = self.clips
            self.epoch_file.add(summary.image("train/clips", clip_grid(modality.pictures(clips))), state.epoch)
            self.clips = clips[:0].clone(), modality  # frees the memory

    def write(
        self,
        state: TrainingState,
        lr: float,
        trained: dict[str, float],
        tested: dict[str, float],
        confusion: np.ndarray | None,
    ) -> None:
        """Write the figures of an epoch, which ``state`` already counts.

        ``tested`` is empty and ``confusion`` is ``None`` after an epoch without a validation.
        """
        if not self.active:
            return
        self.epoch_file.add(summary.scalar("lr", lr), state.epoch)
        self.epoch_file.add_figures("train", trained, state.epoch)
        if confusion is not None:
            self.epoch_file.add_figures("val", tested | {"best_top1": state.best}, state.epoch)
            picture = summary.image("val/confusion", confusion_pixels(confusion), dataformats="HWC")
            self.epoch_file.add(picture, state.epoch)
            self.final = {"epoch": state.epoch, "best_top1": state.best} | tested
        self.epoch_file.flush()
        self.step_file.flush()

    def _place(self, state: TrainingState) -> int:
        """Where a state is on the axis of the steps."""
        return round(EPOCH * (state.epoch + state.step / self.steps))

    def _write_hyper_parameters(self) -> None:
        """Write the settings and the final figures for the tab HPARAMS, in place of those of an earlier process."""
        place = self.folder / "hparams"
        shutil.rmtree(place, ignore_errors=True)
        others = {key: self.settings[key] for key in ("model", "variant", "processes", "device")}
        plain = {"dataset": self.settings["dataset"]["name"]} | others | self.settings["recipe"]
        # TensorBoard takes the columns from one run. Each run therefore has a value for each key, None too.
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in plain.items()}
        figures = {f"final/{name}": value for name, value in self.final.items() if math.isfinite(value)}
        file = _EventFile(place)
        for part in summary.hparams(plain, figures):
            file.add(part)
        file.add_figures("final", self.final, self.final["epoch"])
        file.close()


@contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    """A context that turns an error of the system into a ``ConfigError`` that names the folder."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error}); make room, then --resume auto") from error


class _EventFile:
    """An event file of TensorBoard in ``folder``. Points of earlier files from step ``hidden_from`` on are hidden.

    tensorboardX's ``SummaryWriter`` writes in a thread. On a full disk this thread ends, and the run then waits for it
    for ever. This class writes at once.
    """

    def __init__(self, folder: Path, hidden_from: int | None = None):
        self.folder, self.flushed = folder, time.monotonic()
        with _named_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # The name has the seconds. A process that starts in the same second needs another name.
            self.file = EventsWriter(str(folder / "events"), f".{time.time_ns() % 10**9:09d}")
        if hidden_from is not None:
            self._write(Event(step=hidden_from, session_log=SessionLog(status=SessionLog.START)))

    def add(self, content: summary.Summary, step: int = 0) -> None:
        self._write(Event(summary=content, step=step))

    def add_figures(self, group: str, figures: dict[str, float], step: int) -> None:
        """Write finite figures. Prec@5, for example, is not defined for few classes."""
        for name, value in figures.items():
            if math.isfinite(value):
                self.add(summary.scalar(f"{group}/{name}", value), step)

    def flush(self) -> None:
        with _named_errors(self.folder):
            self.file.flush()
        self.flushed = time.monotonic()

    def close(self) -> None:
        with _named_errors(self.folder):
            self.file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with _named_errors(self.folder):
            self.file.write_event(event)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()


def clip_grid(pictures: Tensor) -> Tensor:
    """Pictures (N, T, 3, H, W) uint8 of clips: a row for each clip, a column for each frame: (3, H', W').

    White lines separate the pictures. A wide grid is scaled down so that it is about ``GRID_WIDTH`` pixels wide.
    """
    n, t, _, height, width = pictures.shape
    scale = min(1, GRID_WIDTH / (t * width))
    size = max(1, round(scale * height)), max(1, round(scale * width))
    small = interpolate(pictures.flatten(0, 1).float(), size, mode="area").round()
    small = pad(small, (0, 2, 0, 2), value=255).to(torch.uint8).unflatten(0, (n, t))  # (N, T, 3, h, w)
    return small.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)[:, :-2, :-2]
