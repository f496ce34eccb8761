"""List files. They have one line ``path #frames label`` per video."""

import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .messages import LONGEST_PATH, one_line, path_problem, reason, shown
from .regular_file import open_regular

MOST_FRAMES = 2**31 - 1


class DataError(ValueError):
    """An error in a dataset. The message is one line that names the file, the line, the value and the remedy."""


class Video(NamedTuple):
    """One list line. ``path`` is the path as written there; ``where`` is ``file:line`` for messages."""

    path: str
    num_frames: int
    label: int
    where: str


class VideoList(Sequence[Video]):
    """The videos of a list file. An item is a ``Video``, made when it is asked for; a slice is a Python list.

    The content lies in a few arrays, not in one Python object per video. Python writes a reference count into an object
    whenever it uses it. A loading process that is forked would therefore soon have its own copy of a list of objects,
    but it shares these arrays with the main process.
    """

    def __init__(self, file: str, paths: list[bytes], num_frames: list[int], labels: list[int], lines: list[int]):
        """``file`` is the name for messages; ``paths`` are UTF-8; ``lines`` are the numbers of the videos' lines."""
        self._file, self._paths = file, b"".join(paths)
        self._ends = _array([0, *accumulate(map(len, paths))])  # (videos + 1,); each path begins where another ends
        self._num_frames, self._labels, self._lines = _array(num_frames), _array(labels), _array(lines)  # (videos,)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        i = range(len(self))[place]  # a negative place counts from the end
        path = self._paths[self._ends[i] : self._ends[i + 1]].decode()
        return Video(path, int(self._num_frames[i]), int(self._labels[i]), f"{self._file}:{self._lines[i]}")

    def __iter__(self) -> Iterator[Video]:
        """All videos. This is many times faster than to ask for them by their places."""
        columns = (column.tolist() for column in (self._num_frames, self._labels, self._lines))
        for (start, end), num_frames, label, line in zip(pairwise(self._ends.tolist()), *columns, strict=True):
            yield Video(self._paths[start:end].decode(), num_frames, label, f"{self._file}:{line}")


def _array(values: list[int]) -> np.ndarray:
    """Whole numbers that are not negative, in the smallest type that holds them."""
    return np.array(values, np.min_scalar_type(max(values)))


def read_list(list_file: str | Path, num_classes: int) -> VideoList:
    """The videos of a list file, in its order.

    The file is UTF-8, with or without a byte order mark. A line ends with a line feed, which may follow a carriage
    return. Lines are split from the right, so a path may contain spaces. Blank lines are skipped. Labels start at 0.

    Errors: ``DataError`` with file and line.
    """
    name, paths, counts, labels, numbers = one_line(list_file), [], [], [], []
    for number, line in list_lines(list_file):
        try:
            path, num_frames, label = _fields(line, num_classes)
        except ValueError as problem:
            raise DataError(f"{name}:{number}: {problem}") from None
        paths.append(path.encode())
        counts.append(num_frames)
        labels.append(label)
        numbers.append(number)
    return VideoList(name, paths, counts, labels, numbers)


def list_lines(list_file: str | Path) -> list[tuple[int, str]]:
    """The lines of a list file that are not blank, stripped, with their numbers from 1.

    Errors: ``DataError`` if the file cannot be read or has no such line.
    """
    name = one_line(list_file)
    try:
        lines = [(number, line.strip()) for number, line in enumerate(text_lines(list_file), start=1) if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{name}: no such list file; check the dataset's train_list and val_list") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be read as UTF-8 text ({reason(error)}); save it as UTF-8") from None
    if not lines:
        raise DataError(f"{name}: holds no video; write a line 'path #frames label' for each")
    return lines


def parse_line(line: str, where: str, num_classes: float) -> Video:
    """The video of one of ``list_lines``. ``where`` is ``file:line``.

    Errors: ``DataError`` that begins with ``where``.
    """
    try:
        return Video(*_fields(line, num_classes), where)
    except ValueError as problem:
        raise DataError(f"{where}: {problem}") from None


def _fields(line: str, num_classes: float) -> tuple[str, int, int]:
    """Path, number of frames and label of a list line.

    Errors: ``ValueError`` that says what is wrong and gives the remedy.
    """
    fields = line.rsplit(maxsplit=2)
    if len(fields) != 3:
        raise ValueError(f"{shown(line)} is not 'path #frames label'; write all three, split by spaces")
    path, frames_text, label_text = fields
    num_frames, label = _whole_number(frames_text), _whole_number(label_text)
    if num_frames is None or label is None:
        raise ValueError(
            f"#frames {shown(frames_text)} and label {shown(label_text)} must be whole numbers in 'path #frames label'"
        )
    if num_frames < 1:
        raise ValueError(f"{one_line(frames_text, 40)} frames; a video needs at least 1; extract it again")
    if num_frames > MOST_FRAMES:
        raise ValueError(f"{one_line(frames_text, 40)} frames; a video has at most {MOST_FRAMES}; correct the line")
    if label < 0:
        raise ValueError(f"label {one_line(label_text, 40)} is negative; labels count from 0: correct the line")
    if label >= num_classes:
        raise ValueError(
            f"label {one_line(label_text, 40)} is not below num_classes {num_classes}; "
            "is this list made for another dataset?"
        )
    if len(path) > LONGEST_PATH or not path.isprintable():  # the full check is slow
        problem = path_problem(path)
        if problem:
            raise ValueError(f"path {shown(path)} {problem}; correct it")
    return path, num_frames, label


def sample(count: int, most: int) -> Sequence[int]:
    """At most ``most`` places, spread over a list of ``count`` videos. The first and the last place are among them."""
    if count <= most:
        return range(count)
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def fingerprint(videos: Sequence[Video]) -> str:
    """A short text that tells lists apart, ``8 videos, crc32 1a2b3c4d``. It does not depend on the file's name."""
    lines = [f"{path} {num_frames} {label}\n" for path, num_frames, label, _ in videos]
    return f"{len(videos)} videos, crc32 {zlib.crc32(''.join(lines).encode()):08x}"


def text_lines(file: str | Path) -> list[str]:
    """The lines of a UTF-8 text file. Only a line feed ends a line, as in editors.

    Errors: ``OSError`` and ``ValueError``.
    """
    with open_regular(file) as opened:
        return opened.read().decode("utf-8-sig").split("\n")


def _whole_number(text: str) -> float | None:
    """The whole number that ``text`` holds.

    It is infinite if it has more than 18 digits, and ``None`` for other text.
    """
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()):
        return None
    if len(text) <= 18:
        return int(text)
    return -inf if text.startswith("-") else inf
