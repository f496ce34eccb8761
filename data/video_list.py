"""List files. They have one line ``path #frames label`` per video."""

import zlib
from math import inf
from pathlib import Path
from typing import NamedTuple

from .messages import one_line, path_problem, reason, shown

MOST_FRAMES = 2**31 - 1


class DataError(ValueError):
    """An error in a dataset. The message is one line that names the file, the line, the value and the remedy."""


class Video(NamedTuple):
    """One list line. ``path`` is the path as written there; ``where`` is ``file:line`` for messages."""

    path: str
    num_frames: int
    label: int
    where: str


def read_list(list_file: str | Path, num_classes: int) -> list[Video]:
    """The videos of a list file, in its order.

    The file is UTF-8, with or without a byte order mark. A line ends with a line feed, which may follow a carriage
    return. Lines are split from the right, so a path may contain spaces. Blank lines are skipped. Labels start at 0.

    Errors: ``DataError`` with file and line.
    """
    name = one_line(list_file)
    lines = enumerate(list_lines(list_file), start=1)
    videos = [parse_line(line, f"{name}:{number}", num_classes) for number, line in lines if line.strip()]
    if not videos:
        raise DataError(f"{name}: holds no video; write a line 'path #frames label' for each")
    return videos


def list_lines(list_file: str | Path) -> list[str]:
    """The lines of a list file, also the blank ones.

    Errors: ``DataError`` if the file cannot be read.
    """
    name = one_line(list_file)
    try:
        return text_lines(list_file)
    except FileNotFoundError:
        raise DataError(f"{name}: no such list file; check the dataset's train_list and val_list") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be read as UTF-8 text ({reason(error)})") from None


def parse_line(line: str, where: str, num_classes: float) -> Video:
    """The video of a line that is not blank. ``where`` is ``file:line``.

    Errors: ``DataError`` that begins with ``where``.
    """
    line = line.strip()
    fields = line.rsplit(maxsplit=2)
    if len(fields) != 3:
        raise DataError(f"{where}: {shown(line)} is not 'path #frames label'; write all three, split by spaces")
    path, frames_text, label_text = fields
    num_frames, label = _whole_number(frames_text), _whole_number(label_text)
    if num_frames is None or label is None:
        raise DataError(
            f"{where}: #frames {shown(frames_text)} and label {shown(label_text)} must be whole numbers "
            "in 'path #frames label'"
        )
    if num_frames < 1:
        raise DataError(f"{where}: {one_line(frames_text, 40)} frames; a video needs at least 1; extract it again")
    if num_frames > MOST_FRAMES:
        raise DataError(f"{where}: {one_line(frames_text, 40)} frames; a video has at most {MOST_FRAMES}")
    if label < 0:
        raise DataError(f"{where}: label {one_line(label_text, 40)} is negative; labels count from 0")
    if label >= num_classes:
        raise DataError(
            f"{where}: label {one_line(label_text, 40)} is not below num_classes {num_classes}; "
            "is this list made for another dataset?"
        )
    problem = path_problem(path)
    if problem:
        raise DataError(f"{where}: path {shown(path)} {problem}; correct it")
    return Video(path, int(num_frames), int(label), where)


def fingerprint(videos: list[Video]) -> str:
    """A short text that tells lists apart, ``8 videos, crc32 1a2b3c4d``. It does not depend on the file's name."""
    crc = 0
    for video in videos:
        crc = zlib.crc32(f"{video.path} {video.num_frames} {video.label}\n".encode(), crc)
    return f"{len(videos)} videos, crc32 {crc:08x}"


def text_lines(file: str | Path) -> list[str]:
    """The lines of a UTF-8 text file. Only a line feed ends a line, as in editors.

    Errors: ``OSError`` and ``ValueError``.
    """
    return Path(file).read_bytes().decode("utf-8-sig").split("\n")


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
