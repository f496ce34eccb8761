"""The frames of V4D's action units: a clip is several units, one after the other, and a unit is several frames.

``num_segments`` is the number of frames of the whole clip. Frame numbers start at 1, and n is the video's length.

*Units* are those of the released code, for Kinetics: the frames of a unit are 8 frames apart. A unit of 8 frames spans
64 frames. Most videos of Something-Something are shorter, and then all units begin at frame 1.

*Sparse units* are ours, for short videos, because nobody published how V4D sees Something-Something: a unit always
spans a quarter of the video, and its frames are spread evenly over this quarter. The four units of a training clip
together are the whole video.
"""

from itertools import product

import numpy as np

STEP = 8  # frames between two frames of a unit
TEST_UNITS = 10  # from which the released "slow" test makes all combinations of four
PARTS = ((0, 1), (2, 3, 4), (5, 6, 7), (8, 9))  # of the ten units: one unit of each part makes a combination
SPARSE_SPAN = 1 / 4  # of the video


def random_units(n: int, num_segments: int, units: int, rng: np.random.Generator) -> list[int]:
    """Training: each unit begins at a random frame of its equal part of the video.

    In a video that is too short for this, the beginnings are sorted random frames. In a still shorter one, they are all
    frame 1.
    """
    span = num_segments // units * STEP
    duration = (n - span + 1) // units
    starts = np.zeros(units, int)
    if duration > 0:
        starts = np.arange(units) * duration + rng.integers(duration, size=units)
    elif n > max(units, span):
        starts = np.sort(rng.integers(n - span + 1, size=units))
    return _clip(starts.tolist(), n, num_segments // units)


def regular_units(n: int, num_segments: int, units: int) -> list[int]:
    """Validation and test: the units begin at equal distances from frame 1 on."""
    span = num_segments // units * STEP
    tick = (n - span + 1) / units if n > units + span - 1 else 0
    return _clip([int(tick * k) for k in range(units)], n, num_segments // units)


def unit_combinations(n: int, num_segments: int, units: int) -> list[list[int]]:
    """The released "slow" test: clips of four units, which are chosen from ten in all 36 ways that ``PARTS`` allow."""
    frames = num_segments // units
    ten = np.reshape(regular_units(n, TEST_UNITS * frames, TEST_UNITS), (TEST_UNITS, frames))
    chosen = np.array(list(product(*PARTS)))  # (36, 4)
    return ten[chosen].reshape(len(chosen), -1).tolist()


def random_sparse_units(n: int, num_segments: int, units: int, rng: np.random.Generator) -> list[int]:
    """Training: one random frame of each of the equal segments of a unit."""
    return _sparse(n, num_segments, units, rng.random((units, num_segments // units)))


def regular_sparse_units(n: int, num_segments: int, units: int) -> list[int]:
    """Validation and test: the centres of the segments of each unit. More than four units overlap."""
    return _sparse(n, num_segments, units, np.full((units, num_segments // units), 0.5))


def _clip(starts: list[int], n: int, frames: int) -> list[int]:
    """The frames of units that begin at these offsets. A unit stays at its last frame if a step would leave the video.

    The offset of frame 1 is 0.
    """
    return [start + min(k, (n - 1 - start) // STEP) * STEP + 1 for start in starts for k in range(frames)]


def _sparse(n: int, num_segments: int, units: int, places: np.ndarray) -> list[int]:
    """The frames of sparse units. ``places`` (units, frames) are places in the segments, from 0 to 1."""
    frames = num_segments // units
    span = n * SPARSE_SPAN
    starts = np.linspace(0, n - span, units) if units > 1 else np.array([(n - span) / 2])
    offsets = starts[:, None] + span / frames * (np.arange(frames) + places)
    return (np.minimum(offsets.astype(int), n - 1) + 1).flatten().tolist()
