"""Chooses the frames of a clip. Frame numbers start at 1. n is the video's length, T the number of segments.

Each segment is given by the number p of its first frame. It consists of ``length`` consecutive frames from p on
(``length`` is 1 for RGB, larger for flow and differences). Therefore only the first ``n - length + 1`` frames can begin
a segment.

The released codes treat short videos differently. A video is short if at most T frames can begin a segment.
``"first_frame"`` then repeats frame 1 (RSA's validation and test, SDA's and TSM's validation). ``"spread"`` spreads
these frames over the segments (SDA's and TSM's test).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHORT_VIDEOS = ("first_frame", "spread")
DENSE_WINDOW, DENSE_CLIPS = 64, 10
CLIPS = (1, 2, DENSE_CLIPS)


@dataclass(frozen=True)
class FrameOrder:
    """Changes the order of the frames of a test clip, to measure how much the accuracy depends on the order.

    ``name`` is ``"as it is"``, ``"reverse"``, ``"shuffle"`` or ``"repeat"``. The seed of a shuffle is the video's place
    in the list. ``"repeat"`` replaces all T frames by the ``frame``-th one, counted from 1.
    """

    name: str
    frame: int = 0

    def __call__(self, clip: list[int], seed: int) -> list[int]:
        """The frame numbers of a clip in this order.

        Errors: ``ValueError`` for a frame beyond the clip.
        """
        if self.name == "reverse":
            return clip[::-1]
        if self.name == "shuffle":
            return np.random.default_rng(seed).permutation(clip).tolist()
        if self.name == "repeat":
            if not 1 <= self.frame <= len(clip):
                raise ValueError(f"frame {self.frame} is not one of the {len(clip)} frames of a clip")
            return [clip[self.frame - 1]] * len(clip)
        return clip

    def __str__(self) -> str:
        return {"reverse": "reversed", "shuffle": "shuffled", "repeat": f"frame {self.frame} repeated"}.get(
            self.name, self.name
        )

    @property
    def suffix(self) -> str:
        """The text that is added to a line about a protocol; empty for the usual order."""
        return "" if self.name == "as it is" else f" (frames {self})" if self.name != "repeat" else f" ({self})"

    def file_name(self, path: str) -> Path:
        """``out.npz`` -> ``out_reverse.npz``; the usual order does not change the name."""
        file = Path(path)
        return file if self.name == "as it is" else file.with_name(f"{file.stem}_{self.name}{file.suffix}")


AS_IT_IS = FrameOrder("as it is")


def random_segments(n: int, num_segments: int, rng: np.random.Generator, length: int = 1) -> list[int]:
    """Training: one random frame from each of T equal segments.

    All segments have the same whole number of frames, so up to T - 1 frames at the end are never used. If a segment
    would have no frame, the released code draws T sorted numbers from a video of more than T frames. From a shorter
    video it takes frame 1 T times.
    """
    first_frames = n - length + 1
    duration = first_frames // num_segments
    if duration > 0:
        return (np.arange(num_segments) * duration + rng.integers(duration, size=num_segments) + 1).tolist()
    if n > num_segments and first_frames > 0:  # the released code fails if n < length
        return (np.sort(rng.integers(first_frames, size=num_segments)) + 1).tolist()
    return [1] * num_segments


def segment_centres(n: int, num_segments: int, short_videos: str, length: int = 1) -> list[int]:
    """Validation and the first test clip: the centre of each of T equal segments."""
    return _spread(n, num_segments, short_videos, length, 0.5)


def segment_starts(n: int, num_segments: int, short_videos: str, length: int = 1) -> list[int]:
    """The second test clip: the first frame of each of T equal segments."""
    return _spread(n, num_segments, short_videos, length, 0.0)


def dense_clips(n: int, num_segments: int, num_clips: int = DENSE_CLIPS) -> list[list[int]]:
    """Clips of T frames, each spread over a window of 64 frames. A shorter video starts again from frame 1.

    The first window begins at the first frame and the last one ends at the last frame. A single window is in the middle
    (TAM).
    """
    last_start = max(1, 1 + n - DENSE_WINDOW) - 1
    starts = np.linspace(0, last_start, num=num_clips, dtype=int).tolist()
    if num_clips == 1:
        starts = [(last_start + 1) // 2]
    stride = DENSE_WINDOW // num_segments
    return [[(start + x * stride) % n + 1 for x in range(num_segments)] for start in starts]


def test_clips(n: int, num_segments: int, num_clips: int, short_videos: str, length: int = 1) -> list[list[int]]:
    """The clips of a test: 1 (segment centres), 2 (centres and starts) or 10 (dense, for any length)."""
    spread = (n, num_segments, short_videos, length)
    if num_clips == 1:
        return [segment_centres(*spread)]
    if num_clips == 2:
        return [segment_centres(*spread), segment_starts(*spread)]
    if num_clips == DENSE_CLIPS:
        return dense_clips(n, num_segments)
    raise ValueError(f"{num_clips} clips: 1, 2 or {DENSE_CLIPS} are defined")


def consecutive(numbers: list[int], n: int, length: int) -> list[int]:
    """The ``length`` consecutive frames that start at each number. Past the video's end, the last frame repeats."""
    return [min(number + k, n) for number in numbers for k in range(length)]


def _spread(n: int, num_segments: int, short_videos: str, length: int, place: float) -> list[int]:
    """One frame from each of T equal segments. ``place`` is its place in the segment, from 0 (start) to 1 (end)."""
    if short_videos not in SHORT_VIDEOS:
        raise ValueError(f"short_videos={short_videos!r} must be one of {SHORT_VIDEOS}")
    first_frames = n - length + 1
    if short_videos == "first_frame" and first_frames <= num_segments:
        return [1] * num_segments
    tick = max(first_frames, 1) / num_segments  # if n < length, the released code takes frames before the first
    return [int(tick * place + tick * x) + 1 for x in range(num_segments)]
