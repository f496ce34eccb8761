"""V4D against the released code and against its definition; its dropout, weights and start from ImageNet."""

import pytest
import torch
import torch.nn.functional as F
from golden_values import check_module, compared_state, table
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_checks import check_layouts, check_programs, imagenet_start

from models import build_model, load_weights
from models.resnet import Bottleneck
from models.v4d import UnitDropout
from models.weights import released_model
from ops import R4D, ClipConv3d

PARTS = {0: 0, 1: 1, 3: 2, 4: 3}  # the bottlenecks of the released res3 -> ours
BLOCKS = {2: 1, 5: 3}  # the 4-D blocks of the released res3 -> the bottleneck before each of them


def test_the_released_4d_block():
    golden = table("compared/v4d_module.npz")
    check_module(golden, "r4d@train", R4D(16, 12, units=4), (8, 16, 3, 4, 5), lambda name: f"tsa.{name}")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_released_bottleneck(mode):
    block = Bottleneck(32, 8)
    block.insert("conv1", "conv1", ClipConv3d(32, 8, 5, (3, 1, 1)))
    check_module(table("compared/v4d_module.npz"), f"v4d_bottleneck_t3@{mode}", block, (2, 32, 5, 7, 6))


def by_definition(block: R4D, x: torch.Tensor) -> torch.Tensor:
    """A 3x3 2-D convolution over (unit, frame) at each pixel."""
    videos = x.unflatten(0, (-1, block.units, block.num_segments // block.units))  # (N, U, T, C, H, W)
    n, u, t, c, h, w = videos.shape
    pixels = videos.permute(0, 4, 5, 3, 1, 2).reshape(n * h * w, c, u, t)
    y = pixels + F.conv2d(pixels, block.weight.squeeze(-1), padding=1)
    return y.view(n, h, w, c, u, t).permute(0, 4, 5, 3, 1, 2).reshape(x.shape)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 5),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_the_definition(shape, channels, memory_format):
    n, u, t, h, w = shape
    block = R4D(channels, u * t, u).double()
    x = torch.randn(n * u * t, channels, h, w, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    y, expected = block(x), by_definition(block, x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(y)
    gradients = [torch.autograd.grad(out, [x, block.weight], weight) for out in (y, expected)]
    for actual, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


def test_layouts_and_programs():
    block, x = R4D(8, 6, 2), torch.randn(12, 8, 5, 4)
    check_layouts(block, x)
    check_programs(block, x)


def test_refuses():
    for build in (lambda: R4D(8, 6, 4), lambda: build_model("v4d_tiny", 5, 6)):
        with pytest.raises(ValueError, match="num_segments=6 must be a multiple of units=4"):
            build()
    with pytest.raises(ValueError, match="num_segments=6 must be a multiple of units=0"):
        R4D(8, 6, 0)
    with pytest.raises(ValueError, match="6 frames are not a multiple of num_segments 8"):
        R4D(8, 8)(torch.zeros(6, 8, 3, 3))


def test_places():
    """The operations on (unit, frame) are where the release has them, and each sees the units of its own video."""
    model = build_model("v4d_r50", 5, 12, units=3)
    for stage, index, block in model.blocks():
        assert isinstance(block.conv1, ClipConv3d) == (stage >= 2)
        assert hasattr(block, "tsa") == ((stage, index) in [(1, 1), (1, 3)])
    assert model.base_model.layer2[1].tsa.units == 3 and model.base_model.layer3[0].conv1.num_segments == 4
    tiny = build_model("v4d_tiny", 5, 8)
    assert hasattr(tiny.base_model.layer2[1], "tsa") and tiny.base_model.layer3[1].conv1.num_segments == 2


@pytest.mark.parametrize("units", [1, 2, 4])
def test_dropout_is_that_of_pooled_units(units):
    model = build_model("v4d_tiny", 5, 8, units=units, dropout=0.5).train()
    features = torch.rand(24, 256) + 1
    dropped = model.base_model.fc(features)
    mask = (dropped / features).unflatten(0, (-1, 8 // units))  # (N*U, T, F)
    torch.testing.assert_close(mask, mask[:, :1].expand_as(mask))
    assert {round(value) for value in mask.unique().tolist()} == {0, 2}
    assert len({tuple(row.bool().tolist()) for row in mask[:, 0]}) == 3 * units  # each unit drops others

    pooled = features.unflatten(0, (-1, 8 // units)).mean(1) * mask[:, 0]  # as released: pool, then drop
    released = model.new_fc(pooled).unflatten(0, (-1, units)).mean(1)
    torch.testing.assert_close(model.new_fc(dropped).unflatten(0, (-1, 8)).mean(1), released)
    assert torch.equal(model.eval().base_model.fc(features), features)
    assert isinstance(model.base_model.fc, UnitDropout) and model.base_model.fc.p == 0.5


@pytest.mark.parametrize("fast", [True, False])
def test_released_weights(fast):
    state = compared_state("v4d", seed=1)
    stored = dict(state)
    if not fast:  # Mini-Kinetics files: slow[u, o, i, t, 0, 0] = fast[o, i, u, t, 0]
        for part in BLOCKS:
            weight = state[f"base_model.layer2.{part}.tsa.weight"]
            slow = torch.stack([weight[:, :, u, :, :, None] for u in range(3)])
            stored[f"base_model.layer2.{part}.tsa.weight"] = slow
            assert slow.shape == (3, 512, 512, 3, 1, 1) and slow[2, 7, 5, 1, 0, 0] == weight[7, 5, 2, 1, 0]
    model = build_model("v4d_r50", 174, 40, units=10)
    report = load_weights(model, {"state_dict": {f"module.{key}": value for key, value in stored.items()}})
    assert report.layout == "V4D" and len(report.loaded) == len(model.state_dict()) == len(state)
    assert released_model(stored) == "v4d_r50"
    ours = model.state_dict()
    for part, index in BLOCKS.items():
        assert torch.equal(
            ours.pop(f"base_model.layer2.{index}.tsa.weight"), state[f"base_model.layer2.{part}.tsa.weight"]
        )
    for part, index in PARTS.items():
        for key in [key for key in ours if key.startswith(f"base_model.layer2.{index}.")]:
            value = ours.pop(key)
            expected = state[key.replace(f"layer2.{index}.", f"layer2.{part}.", 1)]
            assert torch.equal(value, expected.view(value.shape)), key
    for key, value in ours.items():
        assert torch.equal(value, state[key].view(value.shape)), key
    other = build_model("v4d_r50", 174, 8, units=2)
    assert load_weights(other, model.state_dict()).layout == "own" and released_model(model.state_dict()) is None


def test_start_from_imagenet():
    fresh, model, file = imagenet_start("v4d_r50", num_segments=8)
    before = fresh.state_dict()
    for key, value in model.state_dict().items():
        if value.dim() == 5 and key.endswith("conv1.weight"):
            assert key.startswith(("base_model.layer3.", "base_model.layer4."))
            for frame in value.unbind(2):
                torch.testing.assert_close(frame, file[key] / 3, rtol=1e-6, atol=0)
        else:
            own = key.startswith("new_fc.") or ".tsa." in key
            assert torch.equal(value, before[key] if own else file[key]), key
    bound = model.base_model.layer2[1].tsa.weight.abs().max().item()  # PyTorch's initialisation: uniform
    assert bound == pytest.approx((1 / (512 * 9)) ** 0.5, rel=1e-3)
