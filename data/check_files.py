"""Finds videos whose files are missing, or are not as many as the list says. Nothing is decoded."""

import os
import random
import stat
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, singledispatch
from math import inf
from typing import NamedTuple

from .frame_folder import FrameFolder, template_fields
from .frame_names import numbers_in
from .frame_source import FrameSource
from .messages import one_line, reason
from .packed import PackedStore
from .video_file import VideoFile
from .video_list import DataError, Video

THREADS = 8  # they wait for the disk at the same time; a listing itself needs about 20 microseconds of one core
CHUNK = 32  # videos that a thread looks at in one go
HARMLESS = ("more", "zero")  # all frames that the list counts can be read


class Problem(NamedTuple):
    """What is wrong with a video. ``text`` is one line without the line of the list.

    ``kind``: ``missing`` (no folder, no file, nothing in it), ``template`` (no file has a name of the template),
    ``first`` (the frames do not begin with 1), ``gap`` (a frame between others is missing), ``fewer`` and ``more``
    frames than the list says, ``zero`` (there is a frame 0 too). The kinds of decoding are ``size`` (frames of several
    sizes) and ``bad`` (a file cannot be decoded).

    ``frames`` is the number of frames that the list should give, or ``None`` if no number makes the video usable.
    """

    kind: str
    text: str
    frames: int | None = None


@singledispatch
def look(source: FrameSource, video: Video) -> Problem | None:
    """The problem of a video that can be seen without decoding; ``None`` if there is none.

    A source of another project can register its own function (``look.register``). Otherwise its files are not checked.
    """
    return None


def can_look(source: FrameSource) -> bool:
    """Whether ``look`` says something about the videos of this source."""
    return look.dispatch(type(source)) is not look.dispatch(object)


@look.register
def _(source: FrameFolder, video: Video) -> Problem | None:
    try:
        folder, before = source.place(video)
        names = os.listdir(folder)
    except DataError as error:
        return Problem("missing", str(error))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return Problem("missing", f"no folder {folder}; check the dataset's root and the list's paths")
    except OSError as error:
        return Problem("missing", f"folder {folder} cannot be read ({reason(error)})")
    if not names:
        return Problem("missing", f"folder {folder} is empty; extract the video again")
    n, files = video.num_frames, video.num_frames * (1 if source.fields == 1 else 2)
    if len(names) == files and not before and _names(source.image_tmpl, n).issuperset(names):
        return None
    numbers = numbers_in(names, source.image_tmpl, before)
    if not numbers:
        first, last = (one_line(name) for name in (min(names), max(names)))
        tmpl = f"no file in {folder} has a name of image_tmpl {source.image_tmpl!r}"
        return Problem("template", f"{tmpl}; its {len(names)} files run from {first} to {last}")
    return _compare(numbers, n, str(folder))


@lru_cache(maxsize=4096)
def _names(image_tmpl: str, n: int) -> frozenset[str]:
    """The names of the files of frames 1 to n."""
    axes = [()] if template_fields(image_tmpl) == 1 else [("x",), ("y",)]
    return frozenset(image_tmpl.format(*axis, number) for number in range(1, n + 1) for axis in axes)


def _compare(numbers: set[int], n: int, place: str) -> Problem | None:
    """The problem of a video whose list line says ``n`` frames and that has frames with these ``numbers``."""
    first, last = min(numbers), max(numbers)
    whole = next(k for k in range(1, len(numbers) + 2) if k not in numbers) - 1  # the frames 1 to whole are there
    if whole < n and first != 1:
        text = f"{place} holds frames {first} to {last}, but frames count from 1; rename the files or extract it again"
        return Problem("first", text, whole if 0 < whole == last else None)
    if whole < n and whole < last:
        return Problem("gap", f"{place} lacks frame {whole + 1} between its frames 1 and {last}; extract it again")
    if whole != n:
        return count_problem(place, whole, n)
    if first == 0:
        return Problem("zero", f"{place} has a frame 0, which is never read because frames count from 1", n)
    return None


def count_problem(place: str, there: int, n: int) -> Problem:
    """The problem of a video whose list line says ``n`` frames, but whose frames are 1 to ``there``."""
    kind = "fewer" if there < n else "more"
    return Problem(kind, f"{place} holds frames 1 to {there}, but the list says {n} frames; correct the list", there)


@look.register
def _(source: VideoFile, video: Video) -> Problem | None:
    path = source.root / video.path
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        return Problem("missing", f"no file {path}; check the dataset's root and the list's paths")
    return None if found.st_size else Problem("missing", f"{path} is empty (0 bytes); copy or download it again")


@look.register
def _(source: PackedStore, video: Video) -> Problem | None:
    try:
        row, rows = source.index.find(video)
        source.index.shard(int(row["shard"]))
    except DataError as error:
        return Problem("missing", str(error))
    there = len(rows) // source.index.files_per_frame
    if there == video.num_frames:
        return None
    return count_problem(f"{video.path} in {source.path}", there, video.num_frames)


def look_at_all(
    source: FrameSource, videos: Sequence[Video], order: Sequence[int], threads: int = THREADS, longest: float = inf
) -> Iterator[tuple[int, Problem | None]]:
    """Each place of ``order`` in the list with the problem of its video, in this order.

    After ``longest`` seconds, no more videos are begun, and the rest of ``order`` is left out.
    """

    def look_at(places: Sequence[int]) -> list[tuple[int, Problem | None]]:
        return [(place, look(source, videos[place])) for place in places]

    end, pending = time.monotonic() + longest, deque()
    starts = iter(range(0, len(order), CHUNK))
    with ThreadPoolExecutor(threads) as pool:
        while True:
            while len(pending) < 2 * threads and (start := next(starts, None)) is not None:
                pending.append(pool.submit(look_at, order[start : start + CHUNK]))
            if time.monotonic() > end:  # drop the videos that no thread has begun with
                starts = iter(())
                while pending and pending[-1].cancel():
                    pending.pop()
            if not pending:
                return
            yield from pending.popleft().result()


def spread(count: int) -> list[int]:
    """The places 0 to ``count`` - 1 in a random order, the same each time. Its beginning samples the whole list."""
    return random.Random(0).sample(range(count), count)
