"""How test_models.py computes scores: memory layout, precision, many views, and a device that works ahead."""

import re
import tracemalloc

import numpy as np
import pytest
import torch
from score_files import run_test, train_for_tests

from data.modality import Modality
from data.pixels import PIXELS, cut
from data.transforms import test_crops as crops_of
from engine import evaluate

BEST = "net_runs/run/resnet_rgb_model_best.pth.tar"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a dataset of 8 test videos, and a run of one epoch."""
    return train_for_tests(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def seen(monkeypatch):
    """For each forward pass: the number of its clips, and whether its first convolution's weight is channels_last."""
    found, conv2d = [], torch.nn.Conv2d.forward

    def forward(self, x):
        if self.in_channels == 3:
            found.append((len(x) // 4, self.weight.is_contiguous(memory_format=torch.channels_last), x.dtype))
        return conv2d(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    return found


def test_memory_layout_and_precision_are_those_of_training(trained, seen, tmp_path):
    output, file = run_test(*trained, BEST)
    assert "precision: fp32; memory layout: channels_last" in output
    content = torch.load(trained[0] / BEST, weights_only=True)
    content["config"]["recipe"]["channels_last"] = False
    torch.save(content, tmp_path / "contiguous.pth")
    output, other = run_test(*trained, tmp_path / "contiguous.pth", "--precision", "bf16")
    assert "precision: bf16; memory layout: contiguous" in output
    assert seen == [(8, True, torch.float32), (8, False, torch.float32)]
    difference = abs(other["scores"] - file["scores"]).max() / abs(file["scores"]).max()
    assert 0 < difference < 0.05, difference  # bf16 keeps 8 bits


def test_many_views_become_float_a_batch_at_a_time(trained, seen, monkeypatch):
    """The scores do not depend on it."""
    sizes, normalise = [], Modality.normalise
    monkeypatch.setattr(Modality, "normalise", lambda self, x: sizes.append((x.dtype, len(x))) or normalise(self, x))
    views = "--views", "3x10", "--crop", 40
    few = run_test(*trained, BEST, *views, "--batch_size", 4)[1]
    assert sizes == ([(torch.uint8, 4)] * 7 + [(torch.uint8, 2)]) * 8
    assert [clips for clips, *_ in seen] == [size for _, size in sizes]
    many = run_test(*trained, BEST, *views, "--batch_size", 60)[1]
    assert sizes[-4:] == [(torch.uint8, 60)] * 4
    np.testing.assert_allclose(few["scores"], many["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pixels", PIXELS)
def test_the_views_of_a_video_are_in_memory_once(pixels):
    frames = list(np.random.default_rng(0).integers(0, 256, (80, 60, 80, 3), np.uint8))
    crops = crops_of(80, 60, 10, 48)
    cut(frames, (80, 60), crops, 48, pixels)  # the first call allocates memory that stays
    tracemalloc.start()
    try:
        views = cut(frames, (80, 60), crops, 48, pixels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert views.shape == (10, 80, 3, 48, 48) and views.numel() < peak < 1.1 * views.numel()


def test_a_device_that_works_ahead_gives_the_same_lines_and_scores(trained, monkeypatch):
    """A GPU has the next batch to do when scores are read. Here the CPU takes batches in this order."""
    folder, _ = trained
    lines = (folder / "val.txt").read_text().splitlines()
    lines[1], lines[7] = "val/gone 24 1", "val/lost 24 1"  # the whole last batch cannot be read
    (folder / "bad.txt").write_text("\n".join(lines))
    events, score, count = [], evaluate.score, evaluate.count_correct
    monkeypatch.setattr(evaluate, "score", lambda *args: events.append("start") or score(*args))
    monkeypatch.setattr(evaluate, "count_correct", lambda *args: events.append("read") or count(*args))
    flags = "--list", "bad.txt", "--on_bad_video", "skip", "--batch_size", 1
    outputs, files = [], []
    for ahead in ({}, {"cpu": 1}):
        monkeypatch.setattr(evaluate, "BATCHES_AHEAD", ahead)
        output, file = run_test(*trained, BEST, *flags)
        outputs.append(re.sub(r"Time \S+ \(\S+\)|(Time|Speed) \S+|\[\d\d/.*?\]", "", output))
        files.append(file["scores"])
    assert events == ["start", "read"] * 6 + ["start"] + ["start", "read"] * 5 + ["read"]
    assert outputs[0] == outputs[1] and "Prec@1" in outputs[0] and len(files[0]) == 6
    np.testing.assert_array_equal(*files)
