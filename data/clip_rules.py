"""The rules by which clips are drawn from a video. Each released code has its own.

Frame numbers start at 1. n is the video's length and T the number of frames (segments) of a clip. ``sampling.py`` holds
the rules of TSN, TSM, RSA and SDA, and ``units.py`` those of V4D.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import sampling, units

MOST_CLIPS = 100  # a larger number is a typing error


@dataclass(frozen=True)
class ClipSettings:
    """What the clips of all videos of a set have in common.

    ``length`` is the number of consecutive frames of a segment. ``units`` is the number of V4D's units of a clip;
    ``None`` for all other networks.
    """

    num_segments: int
    num_clips: int = 1
    short_videos: str = "spread"
    length: int = 1
    units: int | None = None


Clips = list[list[int]]


@dataclass(frozen=True)
class ClipRule:
    """A rule for the clips of a test.

    Args:
        clips: (n, settings, seed) -> the clips of a video.
        counts: the numbers of clips for which the rule is defined; ``None`` for any.
        short_videos: whether the rule depends on ``short_videos``.
        units: whether the rule is for networks whose clips have units.
    """

    clips: Callable[[int, ClipSettings, int], Clips]
    counts: tuple[int, ...] | None = None
    short_videos: bool = False
    units: bool = False

    def allows(self, count: int) -> bool:
        """Whether the rule is defined for this number of clips."""
        return 1 <= count <= MOST_CLIPS if self.counts is None else count in self.counts

    @property
    def counts_text(self) -> str:
        """The numbers of clips for which the rule is defined, for a message."""
        *others, last = map(str, self.counts or (f"1 to {MOST_CLIPS}",))
        return f"{', '.join(others)} or {last}" if others else last


def _usual(n: int, settings: ClipSettings, _: int) -> Clips:
    """TSN, TSM, RSA, SDA, GST, SmallBig, RubiksNet: 1 centres, 2 centres and starts, 10 dense."""
    s = settings
    return sampling.test_clips(n, s.num_segments, s.num_clips, s.short_videos, s.length)


def _uniform(n: int, settings: ClipSettings, _: int) -> Clips:
    """TAM's ``uniform-N``: 1 centres; N clips begin at equal distances within the first segment.

    Two clips are the segments' starts and their last frames. If a segment is shorter than one frame, the last beginning
    is negative, and numbers below the first frame continue from the video's end. (The released code leaves the rounding
    to numpy, which rounds down since version 1.20.)
    """
    if settings.num_clips == 1:
        return [_centres(n, settings)]
    tick = max(n - settings.length + 1, 1) / settings.num_segments
    starts = np.floor(np.linspace(0, tick - 1, settings.num_clips)).astype(int).tolist()
    return [[int(start + tick * x) % n + 1 for x in range(settings.num_segments)] for start in starts]


def _random(n: int, settings: ClipSettings, seed: int) -> Clips:
    """TEA and STM: N draws of the training rule. Clip k of a video is always the same, however many clips there are."""
    rngs = [np.random.default_rng((seed, k)) for k in range(settings.num_clips)]
    return [sampling.random_segments(n, settings.num_segments, rng, settings.length) for rng in rngs]


def _centres_random(n: int, settings: ClipSettings, seed: int) -> Clips:
    """TIN: the centres, then draws of the training rule. (The released code fails for the draws if n < T.)"""
    return [_centres(n, settings), *_random(n, settings, seed)[1:]]


def _interleaved(n: int, settings: ClipSettings, _: int) -> Clips:
    """TPN: the centres of N * T segments; clip k has every N-th of them, from the k-th on. Two clips: even and odd."""
    count = settings.num_clips
    numbers = sampling.segment_centres(n, count * settings.num_segments, "spread", settings.length)
    return [numbers[k::count] for k in range(count)]


def _dense(n: int, settings: ClipSettings, _: int) -> Clips:
    """N clips, each spread over a window of 64 frames."""
    return sampling.dense_clips(n, settings.num_segments, settings.num_clips)


def _all_but_last(n: int, settings: ClipSettings, _: int) -> Clips:
    """SmallBig's validation: the centres of the segments of all frames but the last. If n < T, frame 1 T times."""
    t, first_frames = settings.num_segments, n - settings.length + 1
    if first_frames < t:
        return [[1] * t]
    tick = (first_frames - 1) / t
    return [[int(tick / 2 + tick * x) + 1 for x in range(t)]]


def _units(n: int, settings: ClipSettings, _: int) -> Clips:
    """V4D's validation and test: one clip of units of frames that are 8 frames apart."""
    return [units.regular_units(n, settings.num_segments, settings.units)]


def _sparse_units(n: int, settings: ClipSettings, _: int) -> Clips:
    """One clip of units that span a quarter of the video each."""
    return [units.regular_sparse_units(n, settings.num_segments, settings.units)]


def _combinations(n: int, settings: ClipSettings, _: int) -> Clips:
    """V4D's "slow" test: the 36 combinations of four units."""
    return units.unit_combinations(n, settings.num_segments, settings.units)


def _centres(n: int, settings: ClipSettings) -> list[int]:
    return sampling.segment_centres(n, settings.num_segments, "spread", settings.length)


CLIP_RULES = {
    "usual": ClipRule(_usual, sampling.CLIPS, short_videos=True),
    "uniform": ClipRule(_uniform),
    "random": ClipRule(_random),
    "centres_random": ClipRule(_centres_random),
    "interleaved": ClipRule(_interleaved),
    "dense": ClipRule(_dense),
    "all_but_last": ClipRule(_all_but_last, (1,)),
    "units": ClipRule(_units, (1,), units=True),
    "sparse_units": ClipRule(_sparse_units, (1,), units=True),
    "combinations": ClipRule(_combinations, (36,), units=True),
}
CENTRES = ("uniform", "centres_random", "interleaved")  # a single clip of these rules is the segment centres, spread
VAL_RULES = ("usual", "all_but_last", "units", "sparse_units")  # for the one clip of a validation
TRAIN_RULES = ("segments", "units", "sparse_units")


def training_frames(rule: str, n: int, settings: ClipSettings, rng: np.random.Generator) -> list[int]:
    """The frames of a training clip. ``rule`` is one of ``TRAIN_RULES``."""
    if rule == "segments":
        return sampling.random_segments(n, settings.num_segments, rng, settings.length)
    draw = {"units": units.random_units, "sparse_units": units.random_sparse_units}[rule]
    return draw(n, settings.num_segments, settings.units, rng)
