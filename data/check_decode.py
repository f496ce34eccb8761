"""Decodes frames of videos, to find files that are damaged and frames of several sizes."""

from functools import singledispatch
from typing import NamedTuple

from .check_files import Problem, count_problem
from .frame_source import FrameSource
from .image_file import SizesDiffer, check_sizes
from .video_file import FileInfo, VideoFile
from .video_list import DataError, Video

AT_ONCE = 16  # frames in memory


class Decoded(NamedTuple):
    """What decoding shows about a video.

    ``frames`` is the number of decoded frames. ``size`` is the (height, width) of the first one. ``notes`` are lines
    about oddities that are no problem.
    """

    frames: int
    size: tuple[int, int] | None
    problem: Problem | None
    notes: list[str]


@singledispatch
def decode(source: FrameSource, video: Video, every_frame: bool) -> Decoded:
    """Decode the first, the middle and the last frame of a video, or every frame."""
    done, sizes = 0, {}
    try:
        n, flow = source.length(video), holds_flow_only(source)
        numbers = list(range(1, n + 1)) if every_frame else sorted({1, (n + 1) // 2, n})
        for start in range(0, len(numbers), AT_ONCE):
            wanted = numbers[start : start + AT_ONCE]
            frames = (source.flow if flow else source.frames)(video, wanted)
            images = frames[::2] if flow else frames
            sizes |= {f"frame {k} of {video.path}": image.shape[:2] for k, image in zip(wanted, images, strict=True)}
            done += len(wanted)
        check_sizes({name: size[::-1] for name, size in sizes.items()})
    except SizesDiffer as error:
        return Decoded(done, None, Problem("size", str(error)), [])
    except DataError as error:
        return Decoded(done, None, Problem("bad", str(error)), [])
    return Decoded(done, next(iter(sizes.values())), None, [])


@decode.register
def _(source: VideoFile, video: Video, every_frame: bool) -> Decoded:
    """Decode every frame, because the number of frames cannot be known otherwise."""
    path = source.root / video.path
    try:
        info = FileInfo(path)
    except DataError as error:
        return Decoded(0, None, Problem("size" if isinstance(error, SizesDiffer) else "bad", f"{path}: {error}"), [])
    wrong = info.num_frames != video.num_frames
    problem = count_problem(str(path), info.num_frames, video.num_frames) if wrong else None
    return Decoded(info.num_frames, info.size, problem, [f"{path}: {note}" for note in info.notes if "cut off" in note])


def holds_flow_only(source: FrameSource) -> bool:
    """Whether the source holds flow and no RGB frames.

    Errors: ``DataError`` if it holds neither, for example because PyAV is not installed.
    """
    try:
        source.check("RGB")
    except DataError as error:
        try:
            source.check("Flow")
        except DataError:
            raise error from None
        return True
    return False
