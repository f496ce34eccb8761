"""A single video that is in no list. It is a file or a folder of frames, and is used like a list of one video."""

import os
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from .frame_source import FrameSource
from .image_file import check_sizes, read_image
from .video_file import FileInfo, read_frames
from .video_list import DataError, Video

IMAGES = (".jpg", ".jpeg", ".png")
SHOWN_GAPS = 5


class OneVideo(FrameSource):
    """The frames of one video.

    ``size`` is (height, width) as a player or viewer shows the frames. ``notes`` are lines for the log.
    """

    num_frames: int
    size: tuple[int, int]
    notes: list[str]

    def length(self, video: Video) -> int:
        """The number of frames that were found when the video was opened."""
        return self.num_frames

    def _checked(self, first: str, images: dict[str, np.ndarray]) -> Iterable[tuple[str, np.ndarray]]:
        """The images with their names.

        Errors: ``DataError`` if their size is not ``self.size``, which is the size of the image named ``first``.
        """
        check_sizes({first: self.size[::-1]} | {name: pixels.shape[1::-1] for name, pixels in images.items()})
        return images.items()


def open_one_video(path: str | Path) -> tuple[Video, OneVideo, list[str]]:
    """The video of a file or folder (its label is 0, its ``where`` is the path), its source, and lines for the log.

    The images of a folder are its frames in natural order (1, 2, 10). A file is read twice: first to count its
    frames, then to decode some of them. A long video therefore does not fill the memory.

    Errors: ``DataError``, which begins with the path. Reasons are: nothing is there, it is not a video, two images have
    the same number, frames have different sizes, or PyAV is not installed and a file is given.
    """
    path = Path(path)
    try:
        if os.path.isdir(path):
            source = _Folder(path)
        elif os.path.isfile(path):
            source = _File(path)
        else:
            raise DataError("no such file or folder")
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return Video(str(path), source.num_frames, 0, str(path)), source, [f"{path}: {note}" for note in source.notes]


class _File(OneVideo):
    def __init__(self, path: Path):
        info = FileInfo(path)
        self.path, self.num_frames, self.size, self.notes = path, info.num_frames, info.size, info.notes

    def decode(self, video: Video, numbers: list[int]) -> Iterable[tuple[str, np.ndarray]]:
        found = read_frames(self.path, numbers, self.num_frames)
        if len(found) < len(numbers):
            raise DataError("holds fewer frames than at first; was the file changed?")
        return self._checked("frame 1", {f"frame {number}": pixels for number, pixels in found.items()})


class _Folder(OneVideo):
    def __init__(self, path: Path):
        files = [file for file in path.iterdir() if file.suffix.lower() in IMAGES]
        if not files:
            raise DataError(f"the folder holds no {', '.join(IMAGES)} files")
        self.files = sorted(files, key=lambda file: (_natural(file.stem), file.name))
        gaps = _gaps(self.files)
        self.num_frames, self.size = len(files), read_image(self.files[0]).shape[:2]
        self.notes = [gaps] if gaps else []

    def decode(self, video: Video, numbers: list[int]) -> Iterable[tuple[str, np.ndarray]]:
        files = [self.files[number - 1] for number in numbers]
        return self._checked(self.files[0].name, {file.name: read_image(file) for file in files})


def _natural(text: str) -> list[str | int]:
    """A sort key that puts 2 before 10. It is a list of text and numbers in turn."""
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(re.split(r"(\d+)", text))]


def _gaps(files: list[Path]) -> str:
    """A text that says which frame numbers are missing; empty if none are.

    The frame number is the last number in a file's name. It is compared with the files whose names are otherwise equal.

    Errors: ``DataError`` if two files have the same number.
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
