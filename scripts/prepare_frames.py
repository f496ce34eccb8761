"""From a video file to a folder of JPEG frames. These functions run in worker processes."""

import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from data import DataError
from data.image_file import read_image
from data.video_file import FileInfo, numbered_frames, opened, shown_image
from scripts.prepare_plan import Place

# ffmpeg's MJPEG encoder divides by this matrix (MPEG-1's for intra frames) times the quality, over 8.
_MATRIX = (
    (8, 16, 19, 22, 26, 27, 29, 34),
    (16, 16, 22, 24, 27, 29, 34, 37),
    (19, 22, 26, 27, 29, 34, 34, 38),
    (22, 22, 26, 27, 29, 34, 37, 40),
    (22, 26, 27, 29, 32, 35, 40, 48),
    (26, 27, 29, 32, 35, 40, 48, 58),
    (26, 27, 29, 34, 38, 46, 56, 69),
    (27, 29, 35, 38, 46, 56, 69, 83),
)
_NUMBER = re.compile(r"(\d+)\.jpe?g", re.IGNORECASE)
LARGEST_STEP = 0.0005  # s; a time stamp is rounded to a file's time base, often a millisecond


class WriteError(Exception):
    """The disk refused a file. Unlike a broken video, this ends the program."""


class Output(NamedTuple):
    """How frames are stored. ``short_side`` None keeps the size; ``quality`` is on ffmpeg's ``-q:v`` scale."""

    root: Path
    unfinished: Path
    image_tmpl: str
    short_side: int | None
    quality: int


def jpeg_tables(quality: int) -> list[list[int]]:
    """The quantisation tables of ``ffmpeg -q:v quality``, row by row; luma and chroma have the same."""
    table = [min(255, value * quality >> 3) for row in _MATRIX for value in row]
    return [[8, *(max(1, value) for value in table[1:])]] * 2  # ffmpeg keeps the mean of a block at 8


def extract(file: Path, clips: list[tuple[str, Place]], output: Output, remove: bool) -> list[tuple[str, int, str]]:
    """Write the frames of each clip of a file; returns (path, number of frames, reason why it was skipped).

    A clip's folder gets its name only when it is complete. ``remove`` deletes the file at the end.

    Errors: ``WriteError``.
    """
    results = []
    for path, place in clips:
        try:
            with new_folder(path, output) as folder:
                count = _write_clip(file, place, folder, output)
            results.append((path, count, ""))
        except DataError as error:
            results.append((path, 0, str(error)))
    if remove:
        file.unlink(missing_ok=True)
    return results


def copy_frames(source: Path, path: str, output: Output, remove: bool) -> list[tuple[str, int, str]]:
    """The same for a folder of JPEG frames, whose bytes are kept unless a short side is asked for."""
    try:
        names = frame_names(source)
        with new_folder(path, output) as folder:
            for number, name in enumerate(names, start=1):
                target = folder / output.image_tmpl.format(number)
                if output.short_side is None:
                    _copy(source / name, target)
                else:
                    _save(Image.fromarray(read_image(source / name)), target, output)
        result = (path, len(names), "")
    except DataError as error:
        result = (path, 0, str(error))
    if remove:
        shutil.rmtree(source, ignore_errors=True)
    return [result]


def count_frames(file: Path, path: str) -> list[tuple[str, int, str]]:
    """The number of frames of a video file that is kept as it is."""
    try:
        return [(path, FileInfo(file).num_frames, "")]
    except DataError as error:
        return [(path, 0, str(error))]


def frame_names(folder: Path) -> list[str]:
    """The frame files of a folder in order.

    Errors: ``DataError`` if they are not numbered from 1 without a gap.
    """
    found = sorted((int(match[1]), match[0]) for match in map(_NUMBER.fullmatch, os.listdir(folder)) if match)
    for number, (stored, name) in enumerate(found, start=1):
        if stored != number:
            raise DataError(f"frame {number} is missing before {name}")
    if not found:
        raise DataError("holds no frame")
    return [name for _, name in found]


@contextmanager
def new_folder(path: str, output: Output) -> Iterator[Path]:
    """An empty folder, which is moved to its place when it is complete and removed after an error."""
    folder, final = output.unfinished / path, output.root / path
    with _writing():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir(parents=True)
    try:
        yield folder
        with _writing():
            final.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(final)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_clip(file: Path, place: Place, folder: Path, output: Output) -> int:
    """Errors: ``DataError`` without the file's name; ``WriteError``."""
    count = 0
    with opened(file) as (container, stream, aspect):
        stream.codec_context.thread_count = 1  # the videos are decoded side by side
        for frame in _within(container, stream, aspect, place):
            count += 1
            _save(shown_image(frame, aspect), folder / output.image_tmpl.format(count), output)
    if not count:
        part = "" if place.start is None else f" from {place.start:.2f} to {place.end:.2f} s"
        raise DataError(f"holds no frame{part}; is it the whole video?")
    return count


def _within(container: Any, stream: Any, aspect: Any, place: Place) -> Iterator[Any]:
    """The frames of a place. A jump is taken only if it lands before the start."""
    if place.start is None:
        yield from (frame for _, frame in numbered_frames(container, stream, aspect))
        return
    origin = (stream.start_time or 0) * stream.time_base if stream.time_base else 0
    start, end = place.start - LARGEST_STEP, place.end - LARGEST_STEP
    container.seek(max(0, int((start + float(origin)) / stream.time_base)), stream=stream, backward=True)
    for attempt in range(2):
        first = True
        for _, frame in numbered_frames(container, stream, aspect):
            if frame.time is None:
                raise DataError("has no time stamps, so a part of it cannot be found")
            time = frame.time - float(origin)
            if first and time > start and attempt == 0 and time > LARGEST_STEP:
                break  # the file's index is wrong; decode from the beginning
            first = False
            if time >= end:
                return
            if time >= start:
                yield frame
        else:
            return
        container.seek(0, backward=True, any_frame=False)


def _copy(source: Path, target: Path) -> None:
    """Errors: ``WriteError``."""
    try:
        os.link(source, target)  # no second copy where the disk is the same
    except OSError:
        with _writing():
            shutil.copyfile(source, target)


def _save(image: Image.Image, file: Path, output: Output) -> None:
    """Errors: ``WriteError``. 4:2:0, as ffmpeg stores frames of almost every video."""
    if output.short_side is not None:
        scale = output.short_side / min(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
    content = io.BytesIO()
    image.save(content, "JPEG", qtables=jpeg_tables(output.quality), subsampling="4:2:0")
    with _writing():
        file.write_bytes(content.getvalue())


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"cannot write {error.filename or 'a frame'}: {error.strerror or error}; is the disk full?"
        ) from None
