"""Frames from video files, decoded by PyAV as a player shows them: turned, mirrored and with square pixels.

PyAV was chosen over torchcodec for two reasons. It read 8 and 16 spread frames faster from most measured files, and at
most 4 % more slowly from the others (``python -m benchmarks.video``, figures in ``benchmarks/RESULTS.md``). It also
contains FFmpeg's libraries, which torchcodec needs installed. Both gave the same pixels. One thread is used, because
more threads were hardly faster.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from .frame_source import FrameSource
from .image_file import check_size, check_sizes
from .video_jumps import NotCertain, needed_frames
from .video_list import DataError, Video

# The first two rows and columns of a display matrix (a, b, c, d) -> the same operation in PIL. The matrix moves pixel
# (x, y) to (ax + cy, bx + dy), and y points down.
_TURNS = {
    (1, 0, 0, 1): None,
    (0, 0, 0, 0): None,  # some muxers write no matrix, and players then show the frames as stored
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,  # PIL's angles are counterclockwise
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
# FFmpeg's formats that open other files. These are refused, because the dataset does not name those files.
_PLAYLISTS = ("concat", "concatf", "dash", "hls", "imf", "rtsp", "sdp")
_SIDEWAYS = [turn for (a, *_), turn in _TURNS.items() if a == 0 and turn is not None]


class VideoFile(FrameSource):
    """Video files ``root/<path of the list line>``. The list line gives the number of frames of a file.

    If the time stamps are exact and the number of packets is the number of frames in the list, only the packets that
    the frames need are decoded (``video_jumps``). Other files are decoded from their start to the last frame needed.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def __str__(self) -> str:
        return "video files"

    def check(self, modality: str) -> None:
        """Check that the modality reads frames and that PyAV is installed.

        Errors: ``DataError`` if the modality reads flow, or if PyAV is not installed.
        """
        super().check(modality)
        _pyav()

    def decode(self, video: Video, numbers: list[int]) -> Iterator[tuple[str, np.ndarray]]:
        """RGB frames. They are decoded in one thread, because loading processes work side by side.

        Errors: ``DataError`` if a file is missing, too short or not a video.
        """
        path = self.root / video.path  # an absolute path replaces root
        if not os.path.isfile(path):  # Path.is_file() raises if a name is too long
            raise DataError(f"no file {path}; check the dataset's root and the list's paths")
        try:
            images = read_frames(path, numbers, video.num_frames)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        for number in numbers:
            if number not in images:
                raise DataError(
                    f"{path} ends before frame {number}, but the list says {video.num_frames} frames; correct the list"
                )
            yield f"frame {number} of {path}", images[number]


class FileInfo:
    """Facts about a video file from one pass over its frames, without a conversion of pixels.

    ``size`` is the (height, width) that a player shows. ``notes`` are lines for the log.

    Errors: ``DataError`` if a file has no frames, has frames of different sizes, or cannot be decoded.
    """

    def __init__(self, path: Path):
        self.num_frames, self.notes = 0, []
        with opened(path) as (container, stream, aspect):
            first = None
            for self.num_frames, frame in numbered_frames(container, stream, aspect):
                first = first or frame
            if first is None:
                raise DataError("holds no frame; is it a video?")
            self.size = _shown_size(first, aspect)[::-1]
            self._note_the_shape(first, aspect)
            self._note_the_end(container.duration, first.time, frame.time)

    def _note_the_shape(self, frame: Any, aspect: Fraction) -> None:
        stored, shown, turn = (frame.width, frame.height), self.size[::-1], _turn(frame)
        if turn is not None or shown != stored:
            how = "turned by its display matrix, " if turn is not None else ""
            how += f"pixels {aspect} times as wide as high, " if aspect != 1 else ""
            self.notes.append("{}stored as {}x{} px, shown as {}x{} (width x height)".format(how, *stored, *shown))

    def _note_the_end(self, duration: int | None, first: float | None, last: float | None) -> None:
        """Note if the file may be cut off, because some formats then give no error.

        The audio may be longer than the video, so a difference of one second is accepted.
        """
        if self.num_frames > 1 and duration and None not in (first, last):
            seconds = duration / 1_000_000
            if seconds - (last - first) * self.num_frames / (self.num_frames - 1) > 1:
                self.notes.append(
                    f"the last frame is at {last - first:.1f} s of {seconds:.1f} s by the file's header; is it cut off?"
                )


def read_frames(path: Path, numbers: list[int], num_frames: int | None = None) -> dict[int, np.ndarray]:
    """The RGB frames with these numbers (from 1), uint8 (H, W, 3). Numbers beyond the end are left out.

    ``num_frames`` is the number of frames of the whole file. If it is not given, the file is decoded from its start.

    Errors: the errors of ``opened``, and ``DataError`` if frames have different sizes or a size that allows no crops.
    """
    wanted = set(numbers)
    if num_frames is not None:
        # Errors are ignored here, because decoding from the start, below, says what is wrong with the file.
        with suppress(NotCertain, DataError), opened(path) as (container, stream, aspect):
            stream.codec_context.thread_count = 1
            images = _images(needed_frames(container, stream, wanted, num_frames), wanted, aspect)
            if len(images) == len(wanted):
                return images
    with opened(path) as (container, stream, aspect):
        stream.codec_context.thread_count = 1
        return _images(enumerate(container.decode(stream), start=1), wanted, aspect)


def _images(frames: Iterable[tuple[int, Any]], wanted: set[int], aspect: Fraction) -> dict[int, np.ndarray]:
    images = {}
    for number, frame in _of_one_size(frames, aspect):
        if number in wanted:
            images[number] = shown_frame(frame, aspect)
        if len(images) == len(wanted):
            break
    return images


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any, Fraction]]:
    """PyAV's container, its video stream, and the width/height ratio of a pixel (1 if the file does not give it).

    Errors: ``DataError`` if the file cannot be decoded or PyAV is not installed. The message does not name the file.
    """
    av = _pyav()
    try:
        # A video may have a title that is not UTF-8.
        with av.open(str(path), metadata_errors="replace") as container:
            if container.format.name in _PLAYLISTS:
                raise DataError("is a list of other files; give a video file itself")
            if not container.streams.video:
                raise DataError("holds no video stream; is it sound only, or cut off?")
            stream = container.streams.video[0]
            yield container, stream, stream.sample_aspect_ratio or Fraction(1)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"cannot be decoded ({error})") from None


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError:
        raise DataError("reading a file needs PyAV; pip install av, or give a folder of frames") from None
    return av


def numbered_frames(container: Any, stream: Any, aspect: Fraction) -> Iterator[tuple[int, Any]]:
    """PyAV's frames with their numbers.

    Errors: ``DataError`` if frames have different sizes or a size that allows no crops.
    """
    return _of_one_size(enumerate(container.decode(stream), start=1), aspect)


def _of_one_size(frames: Iterable[tuple[int, Any]], aspect: Fraction) -> Iterator[tuple[int, Any]]:
    first: dict[str, tuple[int, int]] = {}
    for number, frame in frames:
        size = frame.width, frame.height
        if not first:
            first = {f"frame {number}": size}
            check_size(f"frame {number}", _shown_size(frame, aspect))
        check_sizes(first | {f"frame {number}": size})
        yield number, frame


def _turn(frame: Any) -> Image.Transpose | None:
    """The operation that a player applies because of a frame's display matrix: a rotation (from phones) or a mirror.

    Errors: ``DataError`` if the matrix is not a quarter turn within two degrees, the tolerance of ffplay.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    least = 0.035 * max(map(abs, (a, b, c, d)))  # sin(2 degrees); the scale belongs to the shape of the pixels
    signs = tuple((value > least) - (value < -least) for value in (a, b, c, d))
    if signs not in _TURNS:
        shown = " ".join(f"{value / 65536:.2f}" for value in (a, b, c, d))
        raise DataError(f"its display matrix ({shown}) is neither quarter turns nor a mirror; encode it upright")
    return _TURNS[signs]


def _squared(frame: Any, aspect: Fraction) -> tuple[int, int]:
    """(width, height) with square pixels. One side grows and no pixel is lost, as in browsers and mpv."""
    return round(frame.width * max(aspect, 1)), round(frame.height / min(aspect, 1))


def _shown_size(frame: Any, aspect: Fraction) -> tuple[int, int]:
    """(width, height) of a frame as ``shown_frame`` gives it."""
    size = _squared(frame, aspect)
    return size[::-1] if _turn(frame) in _SIDEWAYS else size


def shown_image(frame: Any, aspect: Fraction) -> Image.Image:
    """``shown_frame`` as a PIL image."""
    return Image.fromarray(shown_frame(frame, aspect))


def shown_frame(frame: Any, aspect: Fraction) -> np.ndarray:
    """One of ``numbered_frames`` as a player shows it, with square pixels and turned: RGB, uint8 (H, W, 3)."""
    # PyAV's to_image gives the same pixels, but copies them row by row in Python and converts in several threads.
    pixels = frame.to_ndarray(format="rgb24", **_one_thread())
    size, turn = _squared(frame, aspect), _turn(frame)
    if size == (frame.width, frame.height) and turn is None:
        return pixels
    image = Image.fromarray(pixels)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.array(image if turn is None else image.transpose(turn))


@cache
def _one_thread() -> dict[str, int]:
    """The option by which PyAV converts colours in one thread. Versions before 17 never use more."""
    return {"threads": 1} if int(_pyav().__version__.split(".")[0]) >= 17 else {}
