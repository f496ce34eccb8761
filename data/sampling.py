"""Which frames of a video make a clip. Frame numbers count from 1; n is the video's length, T the number of segments.

The released rules differ on short videos: ``"first_frame"`` repeats frame 1 whenever n <= T (RSA's validation and test,
SDA's and TSM's validation), ``"spread"`` spreads what is there (SDA's and TSM's test).
"""

import numpy as np

SHORT_VIDEOS = ("first_frame", "spread")
DENSE_WINDOW, DENSE_CLIPS = 64, 10
CLIPS = (1, 2, DENSE_CLIPS)


def random_segments(n: int, num_segments: int, rng: np.random.Generator) -> list[int]:
    """Training: a random frame of each of T segments of ``n // T`` frames; the last ``n % T`` frames are never seen.

    With fewer than T frames the released code takes frame 1 T times.
    """
    duration = n // num_segments
    if duration == 0:
        return [1] * num_segments
    return (np.arange(num_segments) * duration + rng.integers(duration, size=num_segments) + 1).tolist()


def segment_centres(n: int, num_segments: int, short_videos: str) -> list[int]:
    """Validation and the first test clip: the centre of each of T equal segments."""
    tick = n / num_segments
    return _unless_short(n, num_segments, short_videos, [int(tick / 2 + tick * x) + 1 for x in range(num_segments)])


def segment_starts(n: int, num_segments: int, short_videos: str) -> list[int]:
    """The second test clip: the first frame of each of T equal segments."""
    tick = n / num_segments
    return _unless_short(n, num_segments, short_videos, [int(tick * x) + 1 for x in range(num_segments)])


def dense_clips(n: int, num_segments: int) -> list[list[int]]:
    """Ten clips of T frames, each spread over a window of 64 frames; a shorter video is read in a circle."""
    last_start = max(1, 1 + n - DENSE_WINDOW) - 1
    starts = np.linspace(0, last_start, num=DENSE_CLIPS, dtype=int).tolist()
    stride = DENSE_WINDOW // num_segments
    return [[(start + x * stride) % n + 1 for x in range(num_segments)] for start in starts]


def test_clips(n: int, num_segments: int, num_clips: int, short_videos: str) -> list[list[int]]:
    """The clips of a test: 1 (segment centres), 2 (centres and starts) or 10 (dense)."""
    if num_clips == 1:
        return [segment_centres(n, num_segments, short_videos)]
    if num_clips == 2:
        return [segment_centres(n, num_segments, short_videos), segment_starts(n, num_segments, short_videos)]
    if num_clips == DENSE_CLIPS:
        return dense_clips(n, num_segments)
    raise ValueError(f"{num_clips} clips: 1, 2 or {DENSE_CLIPS} are defined")


def _unless_short(n: int, num_segments: int, short_videos: str, spread: list[int]) -> list[int]:
    if short_videos not in SHORT_VIDEOS:
        raise ValueError(f"short_videos={short_videos!r} must be one of {SHORT_VIDEOS}")
    return [1] * num_segments if short_videos == "first_frame" and n <= num_segments else spread
