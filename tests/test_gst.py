"""GST against the released code and against its definition; its weights and its start from ImageNet."""

import pytest
import torch
import torch.nn.functional as F
from golden_values import check_module, compared_state, table
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_checks import check_layouts, check_programs, imagenet_start
from torch import nn

from models import build_model, load_weights
from models.resnet import Bottleneck
from models.weights import released_model
from ops import GST

ALONE = {
    "gst_a4_b2": {},
    "gst_a4_b2_stride2": {"stride": 2},
    "gst_a4_b1": {"beta": 1},
    "gst_a2_b2": {"alpha": 2},
}
BLOCKS = {"gst_block": (32, 2, 2), "gst_block_plain": (64, 1, 2), "gst_large_block": (32, 1, 1)}  # C, stride, beta


def released(name: str) -> str:
    return name.replace("conv2.spatial.", "conv2.").replace("conv2.temporal.", "Tconv.")


@pytest.mark.parametrize("tag", ALONE)
def test_the_released_operator(tag):
    gst = GST(16, 16, 8, **ALONE[tag])
    check_module(table("compared/gst_module.npz"), tag, gst, (2, 16, 8, 7, 6), lambda name: released(f"conv2.{name}"))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("tag", BLOCKS)
def test_the_released_bottleneck(tag, mode):
    channels, stride, beta = BLOCKS[tag]
    downsample = nn.Sequential(nn.Conv2d(channels, 64, 1, stride, bias=False), nn.BatchNorm2d(64))
    block = Bottleneck(channels, 16, stride, downsample if channels == 32 else None)
    block.insert("conv2", "conv2", GST(16, 16, 4, stride, beta=beta))
    check_module(table("compared/gst_module.npz"), f"{tag}@{mode}", block, (2, channels, 4, 7, 6), released)


def by_definition(gst: GST, x: torch.Tensor) -> torch.Tensor:
    """Frame by frame: each frame of the temporal kernel is a 2-D convolution of a neighbour, if there is one."""
    clips, stride, kernel = x.unflatten(0, (-1, gst.num_segments)), gst.spatial.stride, gst.temporal.weight
    half = x.shape[1] - gst.temporal.in_channels  # 0 if both see all
    outputs = []
    for clip in clips:
        for t in range(gst.num_segments):
            spatial = F.conv2d(clip[t : t + 1, : kernel.shape[1]], gst.spatial.weight, None, stride, 1)
            near = [(k, t + k - 1) for k in range(3) if 0 <= t + k - 1 < gst.num_segments]
            temporal = sum(F.conv2d(clip[i : i + 1, half:], kernel[:, :, k], None, stride, 1) for k, i in near)
            outputs.append(torch.cat([spatial, temporal], 1))
    return torch.cat(outputs)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    channels=st.sampled_from([(6, 9), (4, 12), (8, 6)]),
    stride=st.sampled_from([1, 2]),
    alpha=st.sampled_from([3, "all"]),
    beta=st.sampled_from([1, 2]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_the_definition(shape, channels, stride, alpha, beta, memory_format):
    n, t, h, w = shape
    gst = GST(*channels, t, stride, channels[1] if alpha == "all" else alpha, beta).double()
    x = torch.randn(n * t, channels[0], h, w, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    inputs = [x, *gst.parameters()]
    y, expected = gst(x), by_definition(gst, x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(y)
    for actual, wanted in zip(*(torch.autograd.grad(out, inputs, weight) for out in (y, expected)), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("beta", [1, 2])
def test_layouts_and_programs(beta):
    gst, x = GST(16, 8, 3, 2, beta=beta), torch.randn(6, 16, 5, 4)
    check_layouts(gst, x)
    check_programs(gst, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1}, "alpha=1 must be at least 2 and divide the 8 output channels"),
        ({"alpha": 3}, "alpha=3 must be at least 2 and divide the 8 output channels"),
        ({"beta": 3}, "beta=3 must be 1 or 2 and divide the 6 input channels"),
        ({"in_channels": 7}, "beta=2 must be 1 or 2 and divide the 7 input channels"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        GST(**{"in_channels": 6, "out_channels": 8, "num_segments": 4} | arguments)


def test_refuses_a_part_of_a_clip():
    with pytest.raises(ValueError, match="6 frames are not a multiple of num_segments 4"):
        GST(8, 8, 4)(torch.zeros(6, 8, 3, 3))


@pytest.mark.parametrize("name", ["gst_r50", "gst_large_r50"])
def test_released_weights(name):
    state, model = compared_state(name, seed=1), build_model(name, 174, 16)
    report = load_weights(model, {"state_dict": {f"module.{key}": value for key, value in state.items()}})
    assert report.layout == "GST" and len(report.loaded) == len(model.state_dict()) == len(state)
    assert released_model(state) == name
    for key, value in model.state_dict().items():
        stored = state[released(key)]
        assert torch.equal(value, stored.view(value.shape)), key
    own = build_model(name, 174, 16)
    assert load_weights(own, model.state_dict()).layout == "own" and released_model(model.state_dict()) is None


@pytest.mark.parametrize(("name", "seen"), [("gst_r50", 2), ("gst_large_r50", 1)])
def test_start_from_imagenet(name, seen):
    fresh, model, file = imagenet_start(name, num_segments=8)
    before = fresh.state_dict()
    for key, value in model.state_dict().items():
        if key.endswith("conv2.spatial.weight"):
            expected = file[key.replace("spatial.", "")]
            expected = expected[: len(expected) * 3 // 4, : expected.shape[1] // seen]
        elif key.startswith("new_fc.") or ".temporal." in key:
            expected = before[key]
        else:
            expected = file[key]
        assert torch.equal(value, expected), key


def test_initialisation():
    gst, outputs = GST(256, 256, 8), 27 * 64  # of each input of the spatial-temporal convolution
    assert gst.temporal.weight.std().item() == pytest.approx((2 / outputs) ** 0.5, rel=0.01)
    assert gst.spatial.weight.std().item() == pytest.approx((2 / (9 * 192)) ** 0.5, rel=0.01)
    model = build_model("gst_large_tiny", 5, 4, alpha=8)
    assert model.base_model.layer1[0].conv2.temporal.weight.shape == (2, 16, 3, 3, 3)
