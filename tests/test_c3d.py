"""C3D's ResNet against the released code and against its definition; its weights and its start from ImageNet."""

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
from ops import ClipConv3d

BLOCKS = {"c3d_s1": (32, 8, 1), "c3d_s2_down": (16, 4, 2)}  # C, T, stride


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("tag", BLOCKS)
def test_the_released_bottleneck(tag, mode):
    channels, frames, stride = BLOCKS[tag]
    downsample = nn.Sequential(nn.Conv2d(channels, 32, 1, stride, bias=False), nn.BatchNorm2d(32))
    block = Bottleneck(channels, 8, stride, downsample if stride == 2 else None)
    block.insert("conv2", "conv2", ClipConv3d(8, 8, frames, stride=stride))
    check_module(table("compared/c3d_module.npz"), f"{tag}@{mode}", block, (2, channels, frames, 7, 6))


def by_definition(conv: ClipConv3d, x: torch.Tensor) -> torch.Tensor:
    """Frame by frame: each frame of the kernel is a 2-D convolution of a neighbour, if there is one."""
    frames, (_, *stride), (_, *padding) = conv.num_segments, conv.stride, conv.padding
    middle = conv.kernel_size[0] // 2
    outputs = []
    for clip in x.unflatten(0, (-1, frames)):
        for t in range(frames):
            near = [(k, t + k - middle) for k in range(conv.kernel_size[0]) if 0 <= t + k - middle < frames]
            parts = (F.conv2d(clip[i : i + 1], conv.weight[:, :, k], None, stride, padding) for k, i in near)
            outputs.append(sum(parts))
    return torch.cat(outputs)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    channels=st.sampled_from([(3, 4), (8, 2), (1, 1)]),
    kernel_size=st.sampled_from([(3, 3, 3), (3, 1, 1), (5, 1, 3)]),
    stride=st.sampled_from([1, 2]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_the_definition(shape, channels, kernel_size, stride, memory_format):
    n, t, h, w = shape
    conv = ClipConv3d(*channels, t, kernel_size, stride).double()
    x = torch.randn(n * t, channels[0], h, w, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    y, expected = conv(x), by_definition(conv, x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(y)
    gradients = [torch.autograd.grad(out, [x, conv.weight], weight) for out in (y, expected)]
    for actual, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (3, 1, 1)])
def test_layouts_and_programs(kernel_size):
    # On one thread, PyTorch's 3x1x1 convolution of fewer than 16 clips does not keep channels_last.
    conv, x = ClipConv3d(8, 6, 3, kernel_size), torch.randn(48, 8, 5, 4)
    check_layouts(conv, x)
    check_programs(conv, x)


def test_refuses():
    with pytest.raises(ValueError, match=r"kernel_size=\(2, 3, 3\) must be three odd numbers"):
        ClipConv3d(8, 8, 4, (2, 3, 3))
    with pytest.raises(ValueError, match=r"kernel_size=\(3, 3\) must be three odd numbers"):
        ClipConv3d(8, 8, 4, (3, 3))
    with pytest.raises(ValueError, match="6 frames are not a multiple of num_segments 4"):
        ClipConv3d(8, 8, 4)(torch.zeros(6, 8, 3, 3))


@pytest.mark.parametrize("code", ["GST", "CAKES"])
def test_released_weights(code):
    state, model = compared_state("c3d", seed=1), build_model("c3d_r50", 174, 16)
    stored = state
    if code == "CAKES":  # conv2 and bn2 are one module there
        names = {"conv2.": "convT.op.0.", "bn2.": "convT.op.1."}
        for ours, theirs in names.items():
            stored = {key.replace(f".{ours}", f".{theirs}"): value for key, value in stored.items()}
        assert "base_model.layer3.5.convT.op.1.running_var" in stored
    report = load_weights(model, {"state_dict": {f"module.{key}": value for key, value in stored.items()}})
    assert report.layout == "C3D" and len(report.loaded) == len(model.state_dict()) == len(state)
    assert released_model(stored) == "c3d_r50"
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key].view(value.shape)), key
    own = build_model("c3d_r50", 174, 16)
    assert load_weights(own, model.state_dict()).layout == "own" and released_model(model.state_dict()) is None


def test_start_from_imagenet():
    fresh, model, file = imagenet_start("c3d_r50", num_segments=8)
    for key, value in model.state_dict().items():
        if key.endswith(".conv2.weight"):
            assert value.shape[2:] == (3, 3, 3)
            for frame in value.unbind(2):
                torch.testing.assert_close(frame, file[key] / 3, rtol=1e-6, atol=0)
        else:
            assert torch.equal(value, fresh.new_fc.state_dict()[key[7:]] if key.startswith("new_fc.") else file[key]), (
                key
            )


def test_an_inflated_convolution_of_equal_frames():
    """All frames but the ends give the output of the 2-D convolution; the ends lack one of three neighbours."""
    conv, weight, frame = ClipConv3d(4, 4, 5), torch.randn(4, 4, 3, 3), torch.randn(1, 4, 6, 6)
    conv.load_state_dict(conv.from_imagenet(weight))
    expected = F.conv2d(frame, weight, padding=1) * torch.tensor([2 / 3, 1, 1, 1, 2 / 3]).view(5, 1, 1, 1)
    torch.testing.assert_close(conv(frame.expand(5, -1, -1, -1)), expected, rtol=1e-4, atol=1e-5)
