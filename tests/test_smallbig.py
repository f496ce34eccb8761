"""SmallBig: its pools and blocks beside the released code and a plain form, its weights, its third pool."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from golden_values import check_module, compared_state, formula_tensor, relative_error, table
from operator_checks import check_resnet_start
from torch import nn

from engine.config import load_recipe
from engine.optim import parameter_groups
from models import build_model, load_weights
from models.costs import costs
from models.smallbig import PARTS, SmallBigBottleneck
from ops import BigPool, GlobalView


def block(
    inplanes: int, planes: int, segments: int, stride: int = 1, third_pool: str = "all_frames", extra: bool = False
) -> SmallBigBottleneck:
    """A block as ``smallbig`` makes it; it has a downsample if its shape changes."""
    shortcut = nn.Sequential(nn.Conv2d(inplanes, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes))
    made = SmallBigBottleneck(inplanes, planes, stride, shortcut if stride > 1 or inplanes != 4 * planes else None)
    made.num_segments = segments
    made.widen(third_pool, extra)
    return made


def released(name: str) -> str:
    """The released name for our name of a tensor of a block."""
    for theirs, ours in PARTS.items():
        name = f".{name}".replace(ours, theirs).removeprefix(".")
    return name


GOLDEN = {
    "smallbig_s1": ((2, 32, 8, 7, 6), lambda: block(32, 8, 8)),
    "smallbig_s2_down": ((2, 16, 4, 7, 6), lambda: block(16, 8, 4, stride=2)),
    "smallbig_extra": ((2, 32, 4, 5, 6), lambda: block(32, 8, 4, extra=True)),
}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("tag", GOLDEN)
def test_blocks_are_the_released_ones(tag, mode):
    shape, make = GOLDEN[tag]
    check_module(table("compared/smallbig_module.npz"), f"{tag}@{mode}", make(), shape, released)


def plain_pool(x, t, all_frames):
    """The maximum over the neighbours of each place, which are stacked."""
    n, (h, w) = len(x) // t, x.shape[2:]
    padded = F.pad(x.unflatten(0, (n, t)).transpose(1, 2), (1, 1, 1, 1, 1, 1), value=-torch.inf)  # (N, C, T+2, ...)
    frames = [range(t + 2)] if all_frames else [range(i, i + 3) for i in range(t)]
    seen = [
        torch.stack([padded[:, :, f, i : i + h, j : j + w] for f in window for i in range(3) for j in range(3)]).amax(0)
        for window in frames
    ]
    return torch.stack(seen, 1).flatten(0, 1)


def plain_block(b, x, t, third_pool, extra):
    if extra:
        clips = x.unflatten(0, (-1, t))
        largest = clips.amax((1, 3, 4))  # (N, C)
        reduced = F.linear(largest, b.extra.reduce.weight.flatten(1)).sigmoid().repeat_interleave(t, 0)
        x = x + b.extra.bn(b.extra.expand(b.extra.reduce(x) * reduced[:, :, None, None]))
    y = F.relu(b.bn1(b.conv1(x)) + b.big1(b.conv1(plain_pool(x, t, False))))
    y = F.relu(b.bn2(b.conv2(y)) + b.big2(b.conv2(plain_pool(y, t, False))))
    big = b.big3(b.conv3(plain_pool(y, t, third_pool == "all_frames")))
    y = b.bn3(b.conv3(y)) + (big.repeat_interleave(t, 0) if third_pool == "all_frames" else big)
    return F.relu(y + (x if b.downsample is None else b.downsample(x)))


@pytest.mark.parametrize("t", [1, 2, 5])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("third_pool", ["all_frames", "3x3x3"])
@pytest.mark.parametrize(
    ("extra", "arguments", "size"), [(False, (32, 8), (5, 3)), (True, (12, 8), (4, 5)), (True, (12, 8), (1, 6))]
)
def test_other_sizes_are_the_plain_form(extra, arguments, size, third_pool, memory_format, t):
    torch.manual_seed(t)
    module = block(*arguments, t, third_pool=third_pool, extra=extra).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1 if parameter.dim() == 1 else 0, 0.3)
    x = torch.randn(3 * t, arguments[0], *size).double().contiguous(memory_format=memory_format).requires_grad_()
    y, expected = module(x), plain_block(module, x, t, third_pool, extra)
    torch.testing.assert_close(y, expected)
    weights = [x, *module.parameters()]
    g = torch.randn_like(y)
    gradients = (torch.autograd.grad(out, weights, g) for out in (y, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("all_frames", [False, True])
def test_of_equal_values_the_first_one_gets_the_gradient(all_frames):
    """Frames of a short video are equal. Then the released pool's gradient goes to the first of them."""
    x = torch.randn(1, 3, 1, 4, 5).expand(2, 3, 4, 4, 5).clone().requires_grad_()  # (N, C, T, H, W)
    kernel, padding = ((4, 3, 3), (0, 1, 1)) if all_frames else ((3, 3, 3), (1, 1, 1))
    expected = F.max_pool3d(x, kernel, 1, padding)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        frames = x.detach().transpose(1, 2).flatten(0, 1).contiguous(memory_format=memory_format).requires_grad_()
        y = BigPool(4, all_frames)(frames)
        assert torch.equal(y.unflatten(0, (2, -1)).transpose(1, 2), expected)
        (ours,) = torch.autograd.grad(y.square().sum(), frames)
        (theirs,) = torch.autograd.grad(expected.square().sum(), x, retain_graph=True)
        torch.testing.assert_close(ours.unflatten(0, (2, 4)).transpose(1, 2), theirs)


def test_of_equal_frames_the_first_one_gets_the_gradient_of_the_global_view():
    view = GlobalView(4, 4)
    with torch.no_grad():
        view.reduce.weight.fill_(1)
        view.expand.weight.fill_(1)
        view.bn.weight.fill_(1)
    frames = torch.randn(1, 4, 5, 5).expand(4, 4, 5, 5).clone().requires_grad_()
    view.eval()(frames).sum().backward()
    assert not torch.equal(frames.grad[0], frames.grad[1]) and torch.equal(frames.grad[1], frames.grad[2])


@pytest.mark.parametrize(
    "module",
    [BigPool(8), BigPool(8, all_frames=True), GlobalView(32, 8), block(32, 8, 8, extra=True), block(32, 8, 8)],
)
@pytest.mark.parametrize("clips", [1, 2])
def test_memory_autocast_compile_and_export(module, clips):
    x = torch.randn(8 * clips, 32, 6, 5)
    expected = module.eval()(x)
    last = module(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last) and expected.is_contiguous()
    torch.testing.assert_close(last, expected)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(module(x).float(), expected.detach()) < 2e-2


@pytest.mark.parametrize("module", [BigPool(8), GlobalView(16, 8)])
def test_frames_must_make_whole_clips(module):
    with pytest.raises(ValueError, match="12 frames are not a multiple of num_segments 8"):
        module(torch.randn(12, 16, 4, 4))


@pytest.mark.parametrize("name", ["smallbig_tiny", "smallbig_r50"])
@pytest.mark.parametrize("extra", [False, True])
def test_it_starts_as_a_resnet_on_frames(name, extra):
    """The norms of the big views start at zero. res2 has none."""
    torch.manual_seed(0)
    model = build_model(name, 5, 4, extra=extra).eval()
    wide = {stage for stage, _, block in model.blocks() if hasattr(block, "big1")}
    assert wide == ({1, 2} if name.endswith("tiny") else {1, 2, 3})
    plain = build_model(name.replace("smallbig", "tsn"), 5, 4).eval()
    own = {key: value for key, value in model.state_dict().items() if ".big" not in key and ".extra." not in key}
    plain.load_state_dict(own)
    clips = torch.randn(1, 4, 3, 32, 32)
    torch.testing.assert_close(model(clips), plain(clips))
    zeros = [key for key, value in model.named_parameters() if key.endswith("weight") and not value.any()]
    blocks = sum(stage > 0 for stage, _, _ in model.blocks())
    assert len(zeros) == blocks * (4 if extra else 3) and all(".big" in key or ".extra.bn." in key for key in zeros)


def test_unknown_third_pool():
    with pytest.raises(ValueError, match="third_pool='3x3' must be one of .'all_frames', '3x3x3'"):
        build_model("smallbig_tiny", 5, 8, third_pool="3x3")


def test_stochastic_depth_drops_the_branches():
    model = build_model("smallbig_tiny", 5, 4, stochastic_depth=0.999).train()
    block = model.base_model.layer3[1]
    for bn in (block.bn3, block.big3):
        nn.init.ones_(bn.weight)
    x = torch.randn(8, 256, 4, 4).relu()
    torch.manual_seed(0)
    assert torch.equal(block(x), x)


CASES = {"smallbig": {}, "smallbig_extra": {"extra": True}}


@pytest.mark.parametrize(
    ("system", "prefix"), [("smallbig", "module."), ("smallbig", ""), ("smallbig_extra", "module.")]
)
def test_released_weights_load_by_name(system, prefix):
    state = {prefix + key: value for key, value in compared_state(system).items()}
    model = build_model("smallbig_r50", 174, 16, **CASES[system])
    report = load_weights(model, {"state_dict": state})
    assert report.layout == "SmallBig" and len(report.loaded) == len(model.state_dict()) == len(state)
    ours = model.state_dict()
    for name, released_name in [("big3.bias", "big3.1.bias"), ("conv2.weight", "conv2.weight")]:
        stored = state[f"{prefix}layer3.1.{released_name}"]
        assert torch.equal(ours[f"base_model.layer3.1.{name}"], stored.squeeze(2) if stored.dim() == 5 else stored)
    assert torch.equal(ours["new_fc.weight"], state[f"{prefix}fc.weight"])
    report = load_weights(model, ours)
    assert report.layout == "own" and len(report.loaded) == len(state)
    with_frame_network = {f"base_model.{key}": value for key, value in compared_state(system).items()}
    assert len(load_weights(model, with_frame_network).loaded) == len(state)


@pytest.mark.parametrize("extra", [False, True])
def test_it_starts_from_a_resnet_50(extra):
    model = build_model("smallbig_r50", 5, 8, extra=extra)
    check_resnet_start(model)


def test_the_cost_that_the_tables_print_is_that_of_the_other_third_pool():
    model = build_model("smallbig_r50", 174, 2, third_pool="3x3x3")
    parameters, multiply_adds = costs(model, 2, 224)
    assert parameters == 23_907_566 and multiply_adds / 1e9 == pytest.approx(56.90 * 2 / 8, rel=5e-3)


def test_the_larger_released_network():
    golden = partial(table("compared/smallbig_r50.npz").__getitem__)
    model = build_model("smallbig_r50", 174, 8, extra=True)
    load_weights(model, compared_state("smallbig_extra"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 31_829_742
    with torch.no_grad():
        logits = model.eval()(formula_tensor("input", (2, 24, 64, 64)).view(2, 8, 3, 64, 64))
    assert relative_error(logits, golden("extra/logits")) < 1e-5


def test_recipe():
    r = load_recipe("smallbig_r50", "kinetics400")
    assert (r.epochs, r.global_batch_size, r.lr, r.schedule, r.clip_gradient) == (100, 64, 0.01, "cosine", None)
    assert (r.weight_decay, r.dropout, r.lr_multipliers, r.flip, r.nesterov) == (1e-4, 0, False, "skip", False)
    for dataset in ("something_v1", "something_v2"):
        s = load_recipe("smallbig_r50", dataset)
        assert (s.epochs, s.lr, s.weight_decay, s.flip) == (100, 0.01, 1e-4, "none") and "not published" in s.source
    groups = parameter_groups(build_model("smallbig_tiny", 5, 8), r.lr_mults, decay_all=r.decay_all)
    assert {(group["lr_mult"], group["decay_mult"]) for group in groups} == {(1, 1)}  # as one group
