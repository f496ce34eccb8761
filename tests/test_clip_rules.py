"""The frames of clips: each rule against the formulas of its released code, written once more, in 0-based offsets."""

import itertools
import math

import numpy as np
import pytest

from data import sampling, units
from data.clip_rules import CLIP_RULES, MOST_CLIPS, TRAIN_RULES, VAL_RULES, ClipSettings, training_frames

LENGTHS = [*range(1, 70), 85, 100, 121, 170, 299, 300]
FRAMES = (1, 4, 5, 8, 16)


def clips(rule, n, t, count=1, seed=0, **settings):
    found = CLIP_RULES[rule].clips(n, ClipSettings(t, count, **settings), seed)
    assert len(found) == count and all(len(clip) == t for clip in found)
    assert all(type(number) is int and 1 <= number <= n for clip in found for number in clip)
    return found


def one_based(*offsets):
    return [[int(offset) + 1 for offset in clip] for clip in offsets]


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("short", sampling.SHORT_VIDEOS)
def test_the_usual_clips_are_those_of_the_released_tables(count, short):
    for n, t in itertools.product(LENGTHS, (1, 8, 16)):
        assert clips("usual", n, t, count, short_videos=short) == sampling.test_clips(n, t, count, short)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_uniform_is_tams(count):
    below_one = 0
    for n, t in itertools.product(LENGTHS, FRAMES):
        tick = n / t
        if count == 1:
            expected = [[int(tick / 2 + tick * x) for x in range(t)]]
        else:
            starts = np.linspace(0, tick - 1, count, dtype=int).tolist()  # as released; numpy rounds down
            expected = [[int(start + tick * x) % n for x in range(t)] for start in starts]
        below_one += tick < 1
        assert clips("uniform", n, t, count) == one_based(*expected), (n, t)
    assert below_one > 20
    assert clips("uniform", 40, 8, 2) == [[1, 6, 11, 16, 21, 26, 31, 36], [5, 10, 15, 20, 25, 30, 35, 40]]
    assert clips("uniform", 5, 8, 2)[1] == [5, 1, 1, 1, 2, 3, 3, 4]  # the beginning is -1, which is the last frame


def test_interleaved_is_tpns_even_and_odd_centres():
    for n, t in itertools.product(LENGTHS, FRAMES):
        tick = n / (2 * t)
        both = [int(tick / 2 + tick * x) for x in range(2 * t)]
        assert clips("interleaved", n, t, 2) == one_based(both[::2], both[1::2])
        assert clips("interleaved", n, t, 1) == clips("usual", n, t, 1)
        three = clips("interleaved", n, t, 3)
        assert [three[k % 3][k // 3] for k in range(3 * t)] == sampling.segment_centres(n, 3 * t, "spread")


def test_all_but_last_is_smallbigs_validation():
    for n, t in itertools.product(LENGTHS, FRAMES):
        tick = (n - 1) / t
        expected = [int(tick / 2 + tick * x) for x in range(t)] if n > t - 1 else [0] * t
        assert clips("all_but_last", n, t) == one_based(expected)
    assert clips("all_but_last", 40, 4) != clips("usual", 40, 4)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_dense_clips_of_any_number(count):
    for n, t in itertools.product(LENGTHS, (1, 4, 8, 16)):
        places = max(1, 1 + n - 64)
        starts = [places // 2] if count == 1 else [int(k * (places - 1) / (count - 1)) for k in range(count)]
        expected = [[(x * (64 // t) + start) % n for x in range(t)] for start in starts]
        assert clips("dense", n, t, count) == one_based(*expected)


@pytest.mark.parametrize("rule", ["random", "centres_random"])
def test_random_clips_are_draws_of_the_training_rule_and_repeat(rule):
    for n, t in itertools.product((1, 3, 8, 9, 40, 120), (4, 8)):
        ten = clips(rule, n, t, 10, seed=3)
        assert ten == clips(rule, n, t, 10, seed=3) and ten[:2] == clips(rule, n, t, 2, seed=3)
        if rule == "centres_random":
            assert ten[0] == clips("usual", n, t, 1)[0]
        duration = n // t
        for clip in ten[1:]:
            if duration:
                assert all(x * duration < number <= (x + 1) * duration for x, number in enumerate(clip))
            else:
                assert clip == [1] * t
    drawn = {tuple(clip) for seed in range(20) for clip in clips(rule, 120, 8, 10, seed=seed)[1:]}
    assert len(drawn) == 180  # other clips and other videos have other frames


def reached(start, n, frames):
    """V4D's loop over the frames of a unit. A step of 8 that would leave the video is not made."""
    found = []
    for _ in range(frames):
        found.append(start)
        if start < n - 8:
            start += 8
    return found


@pytest.mark.parametrize(("count", "frames"), [(4, 8), (4, 4), (10, 8), (1, 8)])
def test_units_are_v4ds(count, frames):
    for n in LENGTHS:
        span = frames * 8
        tick = (n - span + 1) / count if n > count + span - 1 else 0
        expected = sum((reached(int(tick * k), n, frames) for k in range(count)), [])
        assert clips("units", n, count * frames, units=count) == one_based(expected)
    assert clips("units", 40, 32, units=4)[0] == [1, 9, 17, 25, 33, 33, 33, 33] * 4  # a Something-Something video


def test_combinations_are_the_36_of_v4ds_slow_test():
    for n, frames in itertools.product(LENGTHS, (4, 8)):
        ten = np.array(clips("units", n, 10 * frames, units=10)[0]).reshape(10, frames)
        expected = []
        for a in range(10 // 4):
            for b in range(10 // 4, 10 // 2):
                for c in range(10 // 2, 3 * 10 // 4 + 1):
                    for d in range(3 * 10 // 4 + 1, 10):
                        expected.append(np.concatenate([ten[a], ten[b], ten[c], ten[d]]).tolist())
        assert clips("combinations", n, 4 * frames, 36, units=4) == expected


def test_sparse_units_cover_the_video_at_one_rate():
    for n in LENGTHS:
        for frames in (4, 8):
            (four,) = clips("sparse_units", n, 4 * frames, units=4)
            assert four == clips("usual", n, 4 * frames, 1)[0]  # four units: the centres of all segments
            ten = np.reshape(clips("sparse_units", n, 10 * frames, units=10)[0], (10, frames))
            assert ten[0].tolist() == four[:frames] and ten[9].tolist() == four[-frames:]
            assert (np.diff(ten, axis=0) >= 0).all() and (np.ptp(ten, axis=1) <= math.ceil(n / 4)).all()
    (one,) = clips("sparse_units", 80, 4, units=1)
    assert one == [33, 38, 43, 48]  # the middle quarter: frames 31 to 50


def draws(rule, n, t, count, **settings):
    rng = np.random.default_rng((n, t))
    return np.array([training_frames(rule, n, ClipSettings(t, **settings), rng) for _ in range(count)])


def test_training_units_are_v4ds():
    for n in (1, 7, 40, 64, 66, 67, 69, 90, 150):
        found = draws("units", n, 32, 400, units=4).reshape(400, 4, 8) - 1
        starts, duration = found[..., 0], (n - 64 + 1) // 4
        for unit in found.reshape(-1, 8):
            assert unit.tolist() == reached(int(unit[0]), n, 8)
        if duration > 0:
            for k in range(4):
                assert set(starts[:, k]) == set(range(k * duration, (k + 1) * duration))
        elif n > 64:
            assert (np.diff(starts) >= 0).all() and set(starts.flatten()) == set(range(n - 64 + 1))
        else:
            assert (starts == 0).all()


def test_training_sparse_units_take_each_frame_of_the_video():
    for n in (1, 5, 31, 32, 45, 100):
        found = draws("sparse_units", n, 32, 400, units=4)
        assert set(found.flatten()) == set(range(1, n + 1))
        for x in range(32):  # one frame of each of the 32 segments
            low, high = math.floor(n * x / 32), math.ceil(n * (x + 1) / 32)
            assert found[:, x].min() >= low + 1 and found[:, x].max() <= high


def test_training_segments_are_as_before():
    for n, t, length in itertools.product((1, 8, 9, 40), (4, 8), (1, 5)):
        rngs = np.random.default_rng(1), np.random.default_rng(1)
        found = training_frames("segments", n, ClipSettings(t, length=length), rngs[0])
        assert found == sampling.random_segments(n, t, rngs[1], length)


@pytest.mark.parametrize("rule", ["usual", "uniform", "random", "centres_random", "interleaved", "all_but_last"])
def test_longer_segments_stay_in_the_video(rule):
    """Flow and differences: with m frames a segment, a clip begins as if the video were m - 1 frames shorter."""
    for n, t, m in itertools.product((1, 4, 9, 40), (4, 8), (1, 2, 6)):
        count = 1 if rule == "all_but_last" else 2
        found = clips(rule, n, t, count, length=m)
        draws_as_usual = "random" not in rule or (n - m + 1) // t  # short videos have a rule for draws that looks at n
        if n >= m and rule != "uniform" and draws_as_usual:
            assert found == clips(rule, n - m + 1, t, count)


def test_each_rule_says_how_many_clips_it_has():
    counts = {name: [k for k in range(200) if rule.allows(k)] for name, rule in CLIP_RULES.items()}
    assert counts["usual"] == [1, 2, 10] and counts["combinations"] == [36]
    assert counts["units"] == counts["sparse_units"] == counts["all_but_last"] == [1]
    others = {"uniform", "random", "centres_random", "interleaved", "dense"}
    assert all(counts[name] == list(range(1, MOST_CLIPS + 1)) for name in others) and len(counts) == len(others) + 5
    assert set(VAL_RULES) < set(CLIP_RULES) and all(CLIP_RULES[rule].allows(1) for rule in VAL_RULES)
    assert {rule for rule, content in CLIP_RULES.items() if content.units} == {"units", "sparse_units", "combinations"}
    assert TRAIN_RULES[0] == "segments" and units.TEST_UNITS == 10
