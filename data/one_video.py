"""A single video that is in no list: a file (by PyAV) or a folder of frames."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .decode import check_size, check_sizes, open_image
from .video_list import DataError

IMAGES = (".jpg", ".jpeg", ".png")
SHOWN_GAPS = 5
# The first two columns and rows of a display matrix (a, b, c, d), which moves pixel (x, y) to (ax + cy, bx + dy), y
# pointing down -> what PIL calls that.
_TURNS = {
    (1, 0, 0, 1): None,
    (0, 0, 0, 0): None,  # some muxers write no matrix; players show the frames as stored
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,  # PIL counts against the clock
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
_SIDEWAYS = [turn for (a, *_), turn in _TURNS.items() if a == 0 and turn is not None]


@dataclass
class OneVideo:
    """``read`` gives RGB frames by their numbers (from 1), in the order asked; ``notes`` are lines for the log."""

    num_frames: int
    size: tuple[int, int]  # (height, width) as a viewer or player shows them
    notes: list[str]
    read: Callable[[list[int]], list[Image.Image]]


def open_video(path: str | Path) -> OneVideo:
    """The frames of a file or a folder as a player or viewer shows them: turned, mirrored and with square pixels.

    A folder's images are its frames in natural order (1, 2, 10); a file is decoded twice, to count and to pick, so
    that a long one does not fill the memory. Errors: ``DataError`` for what is missing, empty or no video, two images
    of one number, frames of several sizes, and where PyAV is not installed.
    """
    path = Path(path)
    if path.is_dir():
        with _errors_of(path):
            return _open_folder(path)
    if not path.is_file():
        raise DataError(f"--video {path}: no such file or folder")
    return _open_file(path)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"--video {path}: {error}") from None


def _open_folder(path: Path) -> OneVideo:
    files = [file for file in path.iterdir() if file.suffix.lower() in IMAGES]
    if not files:
        raise DataError(f"the folder holds no {', '.join(IMAGES)} files")
    files.sort(key=lambda file: (_natural(file.stem), file.name))
    gaps = _gaps(files)
    size = open_image(files[0]).size

    def read(numbers: list[int]) -> list[Image.Image]:
        with _errors_of(path):
            images = {number: open_image(files[number - 1]) for number in sorted(set(numbers))}
            sizes = {files[number - 1].name: image.size for number, image in images.items()}
            check_sizes({files[0].name: size} | sizes)
        return [images[number] for number in numbers]

    return OneVideo(len(files), size[::-1], [f"--video {path}: {gaps}"] if gaps else [], read)


def _natural(text: str) -> list[str | int]:
    """Sorts 2 before 10: text and numbers in turn."""
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(re.split(r"(\d+)", text))]


def _gaps(files: list[Path]) -> str:
    """The numbers that are missing, in words. The last number of a name counts, among names that are alike without it.

    Errors: ``DataError`` for two files of one number.
    """
    series: dict[tuple, dict[int, Path]] = {}
    for file in files:
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", file.stem, re.DOTALL)
        if match:
            before, number, after = match.groups()
            numbers = series.setdefault((*_natural(before), after.casefold()), {})
            other = numbers.setdefault(int(number), file)
            if other is not file:
                raise DataError(f"{other.name} and {file.name} are both frame {int(number)}; leave one of them")
    gaps, missing = [], 0
    for numbers in series.values():
        for before, after in pairwise(sorted(numbers)):
            if after - before > 1:
                gap = f"{before + 1}" if after - before == 2 else f"{before + 1} to {after - 1}"
                gaps.append(gap if len(series) == 1 else f"{gap} before {numbers[after].name}")
                missing += after - before - 1
    if missing <= 1:
        return f"frame {gaps[0]} is missing" if gaps else ""
    if len(gaps) > SHOWN_GAPS:
        gaps[SHOWN_GAPS:] = [f"{len(gaps) - SHOWN_GAPS} more gaps"]
    return f"frames {' and '.join(filter(None, [', '.join(gaps[:-1]), gaps[-1]]))} are missing"


def _open_file(path: Path) -> OneVideo:
    """Counts the frames and looks at their sizes, without converting their pixels."""
    count, first = 0, None
    with _stream(path) as (container, stream, aspect):
        for count, frame in enumerate(container.decode(stream), start=1):
            if first is None:
                first = frame
                stored, shown, turn = (frame.width, frame.height), _shown_size(frame, aspect), _turn(frame)
                check_size("frame 1", shown)
            check_sizes({"frame 1": stored, f"frame {count}": (frame.width, frame.height)})
        if first is None:
            raise DataError("holds no frame; is it a video?")
        notes = []
        if turn is not None or shown != stored:
            how = " turned by its display matrix," if turn is not None else ""
            how += f" pixels {aspect} times as wide as high," if aspect != 1 else ""
            shapes = "stored as {}x{} px, shown as {}x{} (width x height)".format(*stored, *shown)
            notes.append(f"--video {path}:{how} {shapes}")
        # Some formats end without a word where a file was cut off; a second more is an audio track's right.
        if count > 1 and container.duration and None not in (first.time, frame.time):
            seconds, last = container.duration / 1_000_000, frame.time - first.time
            if seconds - last * count / (count - 1) > 1:
                promise = f"of {seconds:.1f} s by the file's header; is it cut off?"
                notes.append(f"--video {path}: the last frame is at {last:.1f} s {promise}")
    return OneVideo(count, shown[::-1], notes, lambda numbers: _pick(path, numbers, shown))


def _pick(path: Path, numbers: list[int], size: tuple[int, int]) -> list[Image.Image]:
    wanted, images = set(numbers), {}
    with _stream(path) as (container, stream, aspect):
        for number, frame in enumerate(container.decode(stream), start=1):
            if number in wanted:
                images[number] = _show(frame, aspect)
            if len(images) == len(wanted):
                break
        else:
            raise DataError("holds fewer frames than at first; was the file changed?")
        check_sizes({"frame 1": size} | {f"frame {number}": image.size for number, image in images.items()})
    return [images[number] for number in numbers]


@contextmanager
def _stream(path: Path) -> Iterator[tuple[Any, Any, Fraction]]:
    """PyAV's container and its video stream; the width of its pixels by their height, 1 where the file does not say."""
    try:
        import av
    except ImportError:
        remedy = "pip install av, or give a folder of frames"
        raise DataError(f"--video {path}: reading a file needs PyAV; {remedy}") from None
    try:
        # A title that is not UTF-8 is no reason to refuse a video.
        with _errors_of(path), av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise DataError("holds no video stream")
            stream = container.streams.video[0]
            yield container, stream, stream.sample_aspect_ratio or Fraction(1)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"--video {path}: cannot be decoded ({error})") from None


def _turn(frame: Any) -> Image.Transpose | None:
    """What a player does to a frame by its display matrix: the rotation that a phone notes, or a mirror.

    Errors: ``DataError`` for a matrix that is no quarter turn, within the two degrees that ffplay allows.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    least = 0.035 * max(map(abs, (a, b, c, d)))  # sin(2 degrees); the scale is part of the pixels' shape
    signs = tuple((value > least) - (value < -least) for value in (a, b, c, d))
    if signs not in _TURNS:
        shown = " ".join(f"{value / 65536:.2f}" for value in (a, b, c, d))
        raise DataError(f"its display matrix ({shown}) is neither quarter turns nor a mirror; encode it upright")
    return _TURNS[signs]


def _squared(frame: Any, aspect: Fraction) -> tuple[int, int]:
    """(width, height) with square pixels. One side grows, so that no pixel is lost, as in browsers and mpv."""
    return round(frame.width * max(aspect, 1)), round(frame.height / min(aspect, 1))


def _shown_size(frame: Any, aspect: Fraction) -> tuple[int, int]:
    """(width, height) of a frame as ``_show`` gives it."""
    size = _squared(frame, aspect)
    return size[::-1] if _turn(frame) in _SIDEWAYS else size


def _show(frame: Any, aspect: Fraction) -> Image.Image:
    image, size, turn = frame.to_image(), _squared(frame, aspect), _turn(frame)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return image if turn is None else image.transpose(turn)
