"""TEA: its operators and blocks beside the released code and a plain form, its weights, its ImageNet start."""

import re

import pytest
import torch
import torch.nn.functional as F
from golden_values import check_module, compared_state, formula_tensor, relative_error, table
from operator_checks import check_plain_form
from torch import nn
from torchvision.models import resnet50

from engine.config import load_recipe
from models import WeightsError, build_model, load_weights
from models.tea import TEABottleneck
from ops import MotionExcitation, TemporalShiftConv


def block(inplanes: int, planes: int, stride: int = 1, segments: int = 8, first: bool = False) -> TEABottleneck:
    """A block as ``tea`` makes it; the ``first`` one of a stage has a downsample."""
    shortcut = nn.Sequential(nn.Conv2d(inplanes, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes))
    made = TEABottleneck(inplanes, planes, stride, shortcut if first else None)
    made.num_segments = segments
    made.add_time()
    return made


def released(name: str) -> str:
    """The released name for our name of a tensor of a block or of a convolution over time."""
    return "conv.weight" if name == "weight" else re.sub(r"shifts\.(\d)\.", r"shifts.\1.conv.", name)


GOLDEN = {
    "tea_me_c32": ((16, 32, 7, 6), lambda: MotionExcitation(32, 8)),
    "tea_shift_c6": ((16, 6, 5, 4), lambda: TemporalShiftConv(6, 8)),
    "tea_block_normal": ((16, 64, 5, 4), lambda: block(64, 16)),
    "tea_block_stage_s2": ((16, 32, 6, 5), lambda: block(32, 16, 2, first=True)),
    "tea_block_stage_s1": ((16, 32, 4, 3), lambda: block(32, 16, first=True)),
}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("tag", GOLDEN)
def test_modules_are_the_released_ones(tag, mode):
    shape, make = GOLDEN[tag]
    # The gradients of ME have norms near 0.01 in this case, so rounding is a larger part of them.
    names = [name for name, _ in make().named_parameters() if name.startswith("me.")]
    tolerances = dict.fromkeys(names, 1e-3) if (tag, mode) == ("tea_block_stage_s1", "train") else {}
    check_module(table("compared/tea_module.npz"), f"{tag}@{mode}", make(), shape, released, tolerances)


def test_convolutions_over_time_start_as_released():
    golden = table("compared/tea_module.npz")
    assert (TemporalShiftConv(6, 8).weight.detach().numpy() == golden["init/shift"]).all()
    assert (TemporalShiftConv(6, 8, fold_div=None).weight.detach().numpy() == golden["init/fixed"]).all()
    x = torch.randn(8, 4, 3, 3)
    assert torch.equal(TemporalShiftConv(4, 8, fold_div=None)(x), x)
    shifted = TemporalShiftConv(5, 4)(x := torch.randn(8, 5, 3, 3)).unflatten(0, (2, 4))
    x = x.unflatten(0, (2, 4))
    assert torch.equal(shifted[:, :-1, :2], x[:, 1:, :2]) and not shifted[:, -1, :2].any()
    assert torch.equal(shifted[:, 1:, 2:4], x[:, :-1, 2:4]) and not shifted[:, 0, 2:4].any()
    assert torch.equal(shifted[:, :, 4], x[:, :, 4])  # the channel that an odd number leaves over


def plain_time(x, weight, t):
    """The convolution over time, clip by clip and frame by frame."""
    clips = x.unflatten(0, (-1, t))
    taps = weight[:, 0, :, None, None].unbind(1)
    frames = [sum(clips[:, i + k - 1] * taps[k] for k in range(3) if 0 <= i + k - 1 < t) for i in range(t)]
    return torch.stack(frames, 1).flatten(0, 1)


def plain_excitation(me, x, t):
    """Motion excitation in the order of the paper's equations."""
    y = me.bn1(F.conv2d(x, me.conv1.weight))
    moved, y = (
        F.conv2d(y, me.conv2.weight, padding=1, groups=len(me.conv2.weight)).unflatten(0, (-1, t)),
        y.unflatten(0, (-1, t)),
    )
    motion = torch.stack([moved[:, i + 1] - y[:, i] if i + 1 < t else torch.zeros_like(y[:, i]) for i in range(t)], 1)
    pooled = F.adaptive_avg_pool2d(motion.flatten(0, 1), 1)
    return x + x * (torch.sigmoid(me.bn3(F.conv2d(pooled, me.conv3.weight))) - 0.5)


def plain_block(b, x, t):
    """A block, group by group."""
    y = plain_excitation(b.me, F.relu(b.bn1(b.conv1(x))), t)
    width = y.shape[1] // 4
    groups = [y[:, i * width : (i + 1) * width] for i in range(4)]
    for i in range(3):
        before = groups[i - 1] if i and b.downsample is None else 0
        groups[i] = F.relu(b.bns[i](b.convs[i](plain_time(groups[i] + before, b.shifts[i].weight, t))))
    groups[3] = plain_time(groups[3], b.shifts[3].weight, t)
    if b.downsample is not None:
        sums = F.avg_pool2d(F.pad(groups[3], (1, 1, 1, 1)), 3, b.stride)
        groups[3] = sums  # the zeros of the padding count in the average
    y = b.bn3(b.conv3(torch.cat(groups, 1)))
    return F.relu(y + (x if b.downsample is None else b.downsample(x)))


def randomise(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1 if parameter.dim() == 1 else 0, 0.3)
    return module.double()


@pytest.mark.parametrize("t", [1, 2, 5])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("make", "plain", "channels", "size"),
    [
        (lambda t: TemporalShiftConv(7, t), lambda m, x, t: plain_time(x, m.weight, t), 7, (3, 5)),
        (lambda t: MotionExcitation(20, t), plain_excitation, 20, (4, 3)),
        (lambda t: MotionExcitation(24, t, reduction=4), plain_excitation, 24, (1, 1)),
        (lambda t: block(96, 24, segments=t), plain_block, 96, (5, 3)),
        (lambda t: block(12, 8, 2, t, first=True), plain_block, 12, (7, 6)),
    ],
    ids=["time", "motion", "motion_r4", "block", "first_block"],
)
def test_other_sizes_are_the_plain_form(make, plain, channels, size, memory_format, t):
    torch.manual_seed(t)
    module = randomise(make(t))
    x = torch.randn(3 * t, channels, *size).double().contiguous(memory_format=memory_format).requires_grad_()
    check_plain_form(module, lambda x: plain(module, x, t), x)


@pytest.mark.parametrize("module", [MotionExcitation(32, 8), TemporalShiftConv(32, 8), block(32, 8)])
def test_memory_autocast_compile_and_export(module):
    x = torch.randn(8, 32, 6, 5)
    expected = module.eval()(x)
    last = module(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(module(x).float(), expected.detach()) < 2e-2


@pytest.mark.parametrize("module", [MotionExcitation(16, 8), TemporalShiftConv(16, 8)])
def test_frames_must_make_whole_clips(module):
    with pytest.raises(ValueError, match="12 frames are not a multiple of num_segments 8"):
        module(torch.randn(12, 16, 4, 4))


@pytest.mark.parametrize(("prefix", "t"), [("", 8), ("module.", 16)])
def test_released_weights_load_by_name_for_any_number_of_frames(prefix, t):
    state = {prefix + key: value for key, value in compared_state("tea").items()}
    model = build_model("tea_r50", 174, t)
    report = load_weights(model, {"state_dict": state})
    assert report.layout == "TEA" and len(report.loaded) == len(model.state_dict()) == len(state)
    ours = model.state_dict()["base_model.layer3.1.shifts.3.weight"]
    assert torch.equal(ours, state[f"{prefix}base_model.layer3.1.shifts.3.conv.weight"])
    report = load_weights(model, model.state_dict())
    assert report.layout == "own" and len(report.loaded) == len(state)


def res2net(model) -> dict[str, torch.Tensor]:
    """Random tensors with the names and shapes of a Res2Net's ImageNet file, for the frame network of ``model``."""
    shapes = {key: value.shape for key, value in model.base_model.state_dict().items()}
    shapes = {key: shape for key, shape in shapes.items() if ".me." not in key and ".shifts." not in key}
    shapes |= {"fc.weight": (1000, model.new_fc.in_features), "fc.bias": (1000,)}
    counters = {key: torch.tensor(7) for key in shapes if key.endswith("num_batches_tracked")}
    return {key: formula_tensor(key, shape) for key, shape in shapes.items()} | counters


def test_it_starts_from_a_res2net_file():
    model = build_model("tea_r50", 5, 8)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    file = res2net(model)
    report = load_weights(model, file)
    assert report.layout == "imagenet" and len(report.loaded) == len(file) - 2
    for key, value in model.state_dict().items():
        stored = file.get(key.removeprefix("base_model."))
        assert torch.equal(value, start[key] if stored is None else stored), key
    assert model.imagenet.url.endswith("/res2net50_26w_4s-06e79181.pth")


def test_a_resnet_50_file_is_refused():
    with pytest.raises(WeightsError, match="does not fit the model .*base_model.layer1.0.conv1.weight"):
        load_weights(build_model("tea_r50", 5, 8), resnet50().state_dict())


def test_initialisation():
    torch.manual_seed(0)
    model = build_model("tea_r50", 174, 8)
    b = model.base_model.layer3[2]
    for conv in (b.conv1, b.convs[1], b.me.conv1, b.me.conv3):
        std = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5  # kaiming, fan out
        assert conv.weight.std().item() == pytest.approx(std, rel=0.03)
    taps = [shift.weight[:, 0].argmax(1) for shift in b.shifts]
    assert all((tap == 1).all() for tap in taps[:3])
    assert (taps[3][:52] == 2).all() and (taps[3][52:] == 0).all()
    assert all(shift.weight.requires_grad for shift in b.shifts)


def test_recipe():
    for dataset in ("something_v1", "something_v2"):
        r = load_recipe("tea_r50", dataset)
        assert (r.epochs, r.global_batch_size, r.lr, r.lr_steps, r.lr_decay) == (50, 64, 0.02, [30, 40, 45], 0.1)
        assert (r.weight_decay, r.dropout, r.clip_gradient, r.momentum, r.nesterov) == (5e-4, 0.5, 20, 0.9, False)
        assert (r.lr_mults, r.lr_multipliers, r.decay_all) == ({"fc": 5, "fc_bias": 10}, True, False)
        assert (r.flip, r.partial_bn, r.schedule, r.label_smoothing) == ("none", False, "step", 0)
