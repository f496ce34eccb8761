"""STM: its operators and block beside the released code and a plain form, its weights, the sizes of frames it takes."""

import pytest
import torch
import torch.nn.functional as F
from golden_values import check_module, compared_state, relative_error, table
from operator_checks import check_plain_form, check_resnet_start
from torch import nn
from toy_run import make_dataset, quick_flags, run_inside

from engine.config import load_recipe
from models import build_model, load_weights
from models.stm import STMBottleneck
from ops import ChannelwiseMotion, ChannelwiseTemporalConv


def block(inplanes: int, planes: int, stride: int = 1, segments: int = 8) -> STMBottleneck:
    """A block as ``stm`` makes it; it has a downsample if its shape changes."""
    shortcut = nn.Sequential(nn.Conv2d(inplanes, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes))
    made = STMBottleneck(inplanes, planes, stride, shortcut if stride > 1 or inplanes != 4 * planes else None)
    made.cmm = ChannelwiseMotion(planes, segments, stride)
    made.insert("before_conv2", "temporal", ChannelwiseTemporalConv(planes, segments))
    return made


def released(name: str) -> str:
    """The released name for our name of a tensor of a block."""
    return name.replace("cmm.", "mb.").replace("temporal.", "shift.")


GOLDEN = {
    "stm_cmm_c32": ((16, 32, 7, 6), lambda: ChannelwiseMotion(32, 8)),
    "stm_block": ((16, 64, 5, 4), lambda: block(64, 16)),
    "stm_block_s2": ((16, 32, 6, 4), lambda: block(32, 32, 2)),
}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("tag", GOLDEN)
def test_modules_are_the_released_ones(tag, mode):
    shape, make = GOLDEN[tag]
    check_module(table("compared/stm_module.npz"), f"{tag}@{mode}", make(), shape, released)


def test_convolution_over_time_starts_as_released():
    golden = table("compared/stm_module.npz")
    assert (ChannelwiseTemporalConv(16, 8).weight.detach().numpy() == golden["init/shift"]).all()
    y = ChannelwiseTemporalConv(4, 4)(x := torch.randn(8, 4, 3, 3)).unflatten(0, (2, 4))
    x = x.unflatten(0, (2, 4))
    assert torch.equal(y[:, 1:, 0], x[:, :-1, 0]) and not y[:, 0, 0].any()  # the previous frame
    assert torch.equal(y[:, :, 1:3], x[:, :, 1:3])
    assert torch.equal(y[:, :-1, 3], x[:, 1:, 3]) and not y[:, -1, 3].any()  # the next frame


def plain_time(x, weight, t):
    """The convolution over time on (positions, C, T)."""
    series = x.unflatten(0, (-1, t)).permute(0, 3, 4, 2, 1)  # (N, H, W, C, T)
    y = F.conv1d(series.flatten(0, 2), weight, padding=1, groups=x.shape[1])
    return y.unflatten(0, series.shape[:3]).permute(0, 4, 3, 1, 2).flatten(0, 1)


def plain_motion(cmm, x, t):
    """CMM, pair of frames by pair of frames."""
    y = cmm.stage_bn(cmm.stage_conv(x)).unflatten(0, (-1, t))
    motion = [cmm.shift(y[:, i + 1]) - y[:, i] for i in range(t - 1)] + [torch.zeros_like(y[:, 0])]
    motion = F.conv2d(torch.stack(motion, 1).flatten(0, 1), cmm.conv1x1.weight)
    return motion if cmm.stride == 1 else F.adaptive_max_pool2d(motion, (x.shape[2] // 2, x.shape[3] // 2))


def plain_block(b, x, t):
    y = F.relu(b.bn1(b.conv1(x)))
    seen = F.relu(b.bn2(b.conv2(plain_time(y, b.temporal.weight, t))))
    y = b.bn3(b.conv3(seen + plain_motion(b.cmm, y, t)))
    return F.relu(y + (x if b.downsample is None else b.downsample(x)))


@pytest.mark.parametrize("t", [1, 2, 5])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("make", "plain", "channels", "size"),
    [
        (lambda t: ChannelwiseTemporalConv(7, t), lambda m, x, t: plain_time(x, m.weight, t), 7, (3, 5)),
        (lambda t: ChannelwiseMotion(20, t), plain_motion, 20, (4, 3)),
        (lambda t: ChannelwiseMotion(24, t, stride=2, reduction=4), plain_motion, 24, (6, 4)),
        (lambda t: block(32, 8, segments=t), plain_block, 32, (5, 3)),
        (lambda t: block(12, 8, 2, t), plain_block, 12, (4, 6)),
    ],
    ids=["time", "motion", "motion_s2", "block", "block_s2"],
)
def test_other_sizes_are_the_plain_form(make, plain, channels, size, memory_format, t):
    torch.manual_seed(t)
    module = make(t).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1 if parameter.dim() == 1 else 0, 0.3)
    x = torch.randn(3 * t, channels, *size).double().contiguous(memory_format=memory_format).requires_grad_()
    check_plain_form(module, lambda x: plain(module, x, t), x)


@pytest.mark.parametrize("module", [ChannelwiseTemporalConv(32, 8), ChannelwiseMotion(32, 8, 2), block(32, 8)])
@pytest.mark.parametrize("clips", [1, 2])
def test_memory_autocast_compile_and_export(module, clips):
    x = torch.randn(8 * clips, 32, 6, 8)
    expected = module.eval()(x)
    last = module(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(module(x).float(), expected.detach()) < 2e-2


def test_the_motion_of_the_last_frame_is_zero():
    motion = ChannelwiseMotion(16, 4)(torch.randn(8, 16, 4, 4)).unflatten(0, (2, 4))
    assert not motion[:, -1].any() and motion[:, :-1].any()


@pytest.mark.parametrize("module", [ChannelwiseMotion(16, 8), ChannelwiseTemporalConv(16, 8)])
def test_frames_must_make_whole_clips(module):
    with pytest.raises(ValueError, match="12 frames are not a multiple of num_segments 8"):
        module(torch.randn(12, 16, 4, 4))


@pytest.mark.parametrize("size", [64, 96, 160, 224])
def test_frame_sizes_that_work(size):
    with torch.device("meta"):
        assert build_model("stm_r50", 5, 2)(torch.randn(1, 2, 3, size, size)).shape == (1, 5)


@pytest.mark.parametrize(("size", "map_size"), [((112, 112), "7x7"), ((200, 224), "25x28"), ((224, 240), "14x15")])
def test_other_frame_sizes_are_refused(size, map_size):
    with torch.device("meta"):
        model = build_model("stm_r50", 5, 2)
        with pytest.raises(ValueError, match=f"cannot halve a map of {map_size}, .* multiples of 32, such as 224 or"):
            model(torch.randn(1, 2, 3, *size))


def test_main_says_which_sizes_work(tmp_path):
    flags = quick_flags(input_size=40, val_crop=40)
    done = run_inside("main.py", make_dataset(tmp_path), "stm_tiny", "--run", "odd", *flags, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert "error: STM cannot halve a map of 5x5" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("prefix", "t"), [("", 8), ("module.", 16)])
def test_released_weights_load_by_name_for_any_number_of_frames(prefix, t):
    state = {prefix + key: value for key, value in compared_state("stm").items()}
    model = build_model("stm_r50", 174, t)
    report = load_weights(model, {"state_dict": state})
    assert report.layout == "STM" and len(report.loaded) == len(model.state_dict()) == len(state)
    ours = model.state_dict()
    for name, released_name in [("temporal.weight", "shift.weight"), ("cmm.shift.weight", "mb.shift.weight")]:
        stored = state[f"{prefix}base_model.layer3.1.{released_name}"]
        assert torch.equal(ours[f"base_model.layer3.1.{name}"], stored)
    report = load_weights(model, ours)
    assert report.layout == "own" and len(report.loaded) == len(state)


def test_it_starts_from_a_resnet_50():
    model = build_model("stm_r50", 5, 8)
    check_resnet_start(model)


def test_motion_branches_start_at_pytorchs_default():
    torch.manual_seed(0)
    cmm = build_model("stm_r50", 174, 8).base_model.layer4[1].cmm
    for conv in (cmm.stage_conv, cmm.shift, cmm.conv1x1):
        bound = conv.weight[0].numel() ** -0.5  # uniform
        assert conv.weight.abs().max() <= bound and conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_recipe():
    for dataset in ("something_v1", "something_v2", "kinetics400"):
        r = load_recipe("stm_r50", dataset)
        assert (r.epochs, r.global_batch_size, r.lr, r.lr_steps, r.lr_decay) == (50, 64, 0.01, [30, 40, 45], 0.1)
        assert (r.schedule, r.pretrained, r.decay_all) == ("step", "imagenet", False)
        assert "guesses" in r.source
    r = load_recipe("stm_r50", "hmdb51")
    assert (r.epochs, r.lr, r.lr_steps, r.partial_bn) == (25, 0.001, [15], False)
