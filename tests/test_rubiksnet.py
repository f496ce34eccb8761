"""RubiksNet: its shift against the released code and against its definition, its blocks, and the network's options."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_values import check_module, compared_state, formula_parameter, formula_tensor, relative_error, table
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.config import load_recipe
from engine.optim import parameter_groups
from models import WeightsError, build_model, load_weights
from models.rubiksnet import TIERS, RubiksBlock
from models.weights import released_model
from ops import RubiksShift3D, rubiksnet

GOLDEN = table("compared/rubiksnet_module.npz")
OPERATOR = sorted({key.split("/")[0] for key in GOLDEN.files if key.startswith("shift3d")})
PATHS = {"windows": 99, "gather": -1}  # the largest offset for the path of windows
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
BLOCKS = {  # released arguments and the input
    "rubiks_block": ((24, 24, 4), (8, 24, 7, 6)),
    "rubiks_block_stride2": ((12, 24, 4, 2), (8, 12, 8, 6)),
    "rubiks_block_se": ((24, 24, 4, 1, True), (8, 24, 7, 6)),
}
TINY_LAYERS = [1, *TIERS["tiny"][1]]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    monkeypatch.setattr(rubiksnet, "LARGEST_WINDOW", PATHS[request.param])
    return request.param


def one_pass(module: nn.Module, x: torch.Tensor, grad_y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The output and the gradients of the input and of the shift."""
    x = x.detach().requires_grad_()
    y = module(x)
    return y.detach(), *torch.autograd.grad(y, (x, module.shift), grad_y)


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("stored", OPERATOR)
def test_shift_is_the_released_one(path, memory, stored):
    tag = stored.partition("@")[0]
    module = RubiksShift3D(
        12,
        5,
        stride=2 if "stride2" in tag else 1,
        quantize="quant" in tag,
        normalize_grad="_raw" not in tag,
        normalize_t_factor=0.25 if "tfactor" in tag else -1.0 if "tonly" in tag else 1.0,
    )
    shift = formula_parameter(f"{tag}.shift", (3, 12))
    module.shift.data = shift.round() if "_int" in tag else shift
    x = formula_tensor(f"{tag}.input", (2, 5, 12, 7, 6)).flatten(0, 1).contiguous(memory_format=FORMATS[memory])
    grad_y = formula_tensor(f"{tag}.grad_output", GOLDEN[f"{stored}/output"].shape).flatten(0, 1)
    y, grad_x, grad_shift = one_pass(module, x, grad_y)
    assert relative_error(y.unflatten(0, (2, 5)), GOLDEN[f"{stored}/output"]) < 1e-6
    assert relative_error(grad_x.unflatten(0, (2, 5)), GOLDEN[f"{stored}/grad_input"]) < 1e-6
    assert relative_error(grad_shift, GOLDEN[f"{stored}/grad/shift"]) < 1e-5


def read(x: torch.Tensor, offset: torch.Tensor, stride: tuple[int, int, int]) -> torch.Tensor:
    """Each channel of clips (N,T,C,H,W) at its own whole offset (3,C), zeros outside."""
    n, t, c, h, w = x.shape
    far = int(offset.abs().max()) + 1
    padded = F.pad(x, (far, far, far, far, 0, 0, far, far))
    channels = []
    for channel in range(c):
        (a, b, e), (i, j, k) = offset[:, channel].int().tolist(), stride
        part = padded[:, far + a : far + a + t : i, channel, far + b : far + b + h : j, far + e : far + e + w : k]
        channels.append(part)
    return torch.stack(channels, dim=2)


def shift_by_definition(module: RubiksShift3D, frames: torch.Tensor, grad_frames: torch.Tensor) -> tuple:
    """The output and both gradients from eight reads, as the released rules say (``normalize_grad`` off)."""
    shift, stride = module.shift.detach(), module.stride
    x, grad_y = (f.unflatten(0, (len(frames) // module.num_segments, -1)) for f in (frames, grad_frames))
    x = x.detach().requires_grad_()
    first = shift.floor()
    rest = shift - first
    corners = [torch.tensor(corner)[:, None] for corner in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist()]

    def interpolated(shift, first, rest):
        if module.quantize:
            return read(x, first + (rest >= 0.5), stride)
        weights = [torch.where(corner == 1, rest, 1 - rest).prod(0)[:, None, None] for corner in corners]
        return sum(w * read(x, first + corner, stride) for w, corner in zip(weights, corners, strict=True))

    y = interpolated(shift, first, rest)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    small, large = first - (rest == 0).double(), first + 1
    rows = []
    for axis in range(3):
        row = 0
        for corner in corners:
            weight = torch.where(corner == 1, rest, 1 - rest)
            weight[axis] = 2 * corner[axis] - 1  # the derivative of the weights 1 - r and r
            place = torch.where(corner == 1, large, small)
            row = row + (grad_y * weight.prod(0)[:, None, None] * read(x, place, stride)).sum((0, 1, 3, 4))
        rows.append(row)
    return y.detach().flatten(0, 1), grad_x.flatten(0, 1), torch.stack(rows).detach()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 4), st.integers(1, 7), st.integers(1, 6)),
    stride=st.sampled_from([1, 2, 3, (2, 1, 2), (3, 2, 1)]),
    reach=st.sampled_from([1.0, 2.5, 9.0]),
    whole=st.booleans(),
    quantize=st.booleans(),
    memory=st.sampled_from(list(FORMATS)),
    seed=st.integers(0, 1000),
)
def test_shift_is_its_definition(shape, stride, reach, whole, quantize, memory, seed):
    n, t, c, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    module = RubiksShift3D(c, t, stride, quantize, normalize_grad=False).double()
    shift = (torch.rand(3, c, generator=generator, dtype=torch.float64) * 2 - 1) * reach
    if whole:  # some offsets of some axes are whole
        shift = torch.where(torch.rand(3, c, generator=generator) < 0.5, shift.round(), shift)
    module.shift.data = shift
    x = torch.randn(n * t, c, h, w, generator=generator, dtype=torch.float64)
    x = x.contiguous(memory_format=FORMATS[memory])
    grad_y = torch.randn(module(x).shape, generator=generator, dtype=torch.float64)
    expected = shift_by_definition(module, x, grad_y)
    former = rubiksnet.LARGEST_WINDOW
    try:
        for rubiksnet.LARGEST_WINDOW in PATHS.values():
            for actual, wanted in zip(one_pass(module, x, grad_y), expected, strict=True):
                torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)
    finally:
        rubiksnet.LARGEST_WINDOW = former


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_derivatives(path, stride):
    module = RubiksShift3D(3, 3, stride, normalize_grad=False).double()
    x = torch.randn(6, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    shift = torch.tensor([[0.3, -1.6, 0.9], [-0.4, 0.5, 1.2], [0.7, -0.2, -2.3]], dtype=torch.float64)

    def function(x, shift):
        return torch.func.functional_call(module, {"shift": shift}, x)

    assert torch.autograd.gradcheck(function, (x, shift.requires_grad_()))


def test_exactly_one_half_when_quantized(path):
    """The forward pass reads at f + 1. The backward pass of the input reads at the rounded -s, which is f."""
    module = RubiksShift3D(1, 3, quantize=True, normalize_grad=False)
    module.shift.data = torch.tensor([[0.5], [0.0], [0.0]])
    x = torch.arange(1.0, 4)[:, None, None, None]
    y, grad_x, _ = one_pass(module, x, torch.tensor([1.0, 10, 100])[:, None, None, None])
    assert y.flatten().tolist() == [2, 3, 0] and grad_x.flatten().tolist() == [1, 10, 100]


def test_normalization(path):
    """Each channel's gradient has the norm 1. A channel without gradient keeps 0. The time factor comes first."""
    x, grad_y = torch.randn(2, 8, 4, 6, 5).unbind()
    x[:, 1] = 0
    raw, unit, automatic, signs = (
        RubiksShift3D(4, 4, normalize_grad=normalize, normalize_t_factor=factor)
        for normalize, factor in ((False, 1.0), (True, 1.0), (True, "auto"), (True, -1.0))
    )
    gradients = []
    for module in (raw, unit, automatic, signs):
        module.shift.data = raw.shift.data
        gradients.append(one_pass(module, x, 1000 * grad_y)[2])
    channels = [0, 2, 3]
    torch.testing.assert_close(gradients[1][:, channels], F.normalize(gradients[0], dim=0)[:, channels])
    weighted = gradients[0] * torch.tensor([4 / 6, 1, 1])[:, None]
    torch.testing.assert_close(gradients[2][:, channels], F.normalize(weighted, dim=0)[:, channels])
    assert torch.equal(gradients[3][0], gradients[0][0].sign()) and not gradients[3][1:].any()
    assert all(not gradient[:, 1].any() for gradient in gradients)


def test_memory_format_is_kept_and_half_precision_is_computed_in_float32(path):
    module, x = RubiksShift3D(6, 4), torch.randn(8, 6, 5, 7)
    expected = module(x)
    last = module(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected)
    assert expected.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
    low = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(low)
        (grad_x,) = torch.autograd.grad(y.sum(), low)
    assert y.dtype == grad_x.dtype == torch.bfloat16
    assert torch.equal(y, module(low.detach().float()).bfloat16())
    assert module.half()(x.half()).dtype == torch.float16


def test_an_offset_that_is_not_a_number_fails_no_program():
    module, x = RubiksShift3D(3, 2), torch.randn(4, 3, 4, 4)
    module.shift.data[:] = torch.tensor([1.0, math.nan, 1e30])
    y = module(x)
    assert y[:, 1].isnan().all() and not y[:, 2].any() and y[:, 0].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), r"channels=0, num_segments=4 and the three strides \(1, 1, 1\) must be at least 1"),
        ((8, 4, 0), r"the three strides \(1, 0, 0\) must be at least 1"),
        ((8, 4, (1, 2)), r"the three strides \(1, 2\) must be"),
        ((8, 4, 1, False, True, "T"), "normalize_t_factor='T' must be a number or 'auto'"),
    ],
)
def test_shift_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        RubiksShift3D(*arguments)


def test_shift_refuses_other_frames():
    with pytest.raises(ValueError, match="6 frames are not a multiple of num_segments 4"):
        RubiksShift3D(8, 4)(torch.zeros(6, 8, 2, 2))
    with pytest.raises(ValueError, match=r"takes frames \(N\*T, 8, H, W\), got \(4, 6, 2, 2\)"):
        RubiksShift3D(8, 4)(torch.zeros(4, 6, 2, 2))


def test_a_compiler_sees_the_whole_operator():
    module, x = RubiksShift3D(4, 3, stride=2), torch.randn(6, 4, 5, 4)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    compiled.shift = module.shift
    grad_y = torch.randn(6, 4, 3, 2)
    for actual, expected in zip(one_pass(compiled, x, grad_y), one_pass(module, x, grad_y), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("tag", BLOCKS)
def test_blocks_are_the_released_ones(path, tag, mode):
    arguments, shape = BLOCKS[tag]
    check_module(GOLDEN, f"{tag}@{mode}", RubiksBlock(*arguments), shape)


@pytest.mark.parametrize(("system", "tier"), [("rubiksnet", "large"), ("rubiksnet_tiny", "tiny")])
def test_released_files_load_by_name(system, tier):
    state = {f"module.{key}": value for key, value in compared_state(system).items()}
    assert released_model(state) == f"rubiksnet_{tier}"
    model = build_model(f"rubiksnet_{tier}", 174, 8)
    file = {"tier": tier, "num_classes": 174, "num_frames": 8, "variant": "rubiks3d", "model": state}
    report = load_weights(model, file)
    assert report.layout == "RubiksNet" and len(report.loaded) == len(state) == len(model.state_dict())
    shift = model.base_model.layer4[2].as3.rubiks3d.shift
    assert torch.equal(shift, state["module.backbone.layer4.2.as3.rubiks3d.shift"])
    with pytest.raises(WeightsError, match="does not fit the model"):
        load_weights(build_model("rubiksnet_small", 174, 8), state)


@pytest.mark.parametrize("tier", TIERS)
def test_the_tier_is_told_by_the_tensors(tier):
    state = build_model(f"rubiksnet_{tier}", 5, 4).state_dict()
    assert released_model(state) is None  # our own names
    released = {key.replace("base_model.", "backbone."): value for key, value in state.items()}
    assert released_model(released) == f"rubiksnet_{tier}"
    del released["backbone.layer3.0.conv3.weight"]
    assert released_model(released) is None


def test_initialisation():
    model = build_model("rubiksnet_tiny", 174, 8)
    shifts = torch.cat([block.as3.rubiks3d.shift.flatten() for _, _, block in model.blocks()])
    assert shifts.abs().max() < 1 and shifts.mean().abs() < 0.05 and shifts.std().item() == pytest.approx(3**-0.5, 0.02)
    conv = model.base_model.layer4[0].conv2
    assert conv.weight.std().item() == pytest.approx((2 / 432) ** 0.5, rel=0.02)
    assert model.new_fc.weight.abs().max().item() == pytest.approx(432**-0.5, rel=0.01)  # torch's default


def test_there_is_no_imagenet_start():
    with pytest.raises(WeightsError, match="nobody released ImageNet weights of rubiksnet_tiny; add --pretrained none"):
        build_model("rubiksnet_tiny", 5, 4, pretrained="imagenet")
    assert all(load_recipe(f"rubiksnet_{tier}", "something_v2").pretrained is None for tier in TIERS)


def test_groups_of_the_optimiser():
    model = build_model("rubiksnet_small", 174, 8)
    recipe = load_recipe("rubiksnet_small", "something_v2")
    groups = {group["name"]: group for group in parameter_groups(model, recipe.lr_mults)}
    factors = {name: (group["lr_mult"], group["decay_mult"]) for name, group in groups.items()}
    assert factors == {
        "weight": (1, 1),
        "fc_weight": (1, 1),
        "fc_bias": (1, 0),
        "bn": (1, 0),
        "rubiks_shift": (0.01, 0),
    }
    assert len(groups["rubiks_shift"]["params"]) == sum([1, *TIERS["small"][1]])


def clips(n=2, t=4, channels=3):
    return torch.randn(n, t, channels, 40, 33, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("stages", "layers"), [(-1, 0), (0, 1), (1, 2), (4, 5)])
def test_frozen_stages(stages, layers):
    base = build_model("rubiksnet_tiny", 5, 4, frozen_stages=stages).base_model
    assert base.conv1.weight.requires_grad == (stages < 0) and base.bn_last.weight.requires_grad == (stages < 4)
    for layer in range(5):
        parameters = getattr(base, f"layer{layer}").parameters()
        assert {p.requires_grad for p in parameters} == {layer >= layers}


def test_frozen_norms_and_other_inputs():
    model = build_model("rubiksnet_tiny", 5, 4, partial_bn=True, in_channels=10, dropout=0.5).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.training for m in norms] == [True] + [False] * (2 * sum(TINY_LAYERS))
    assert model.base_model.fc.p == 0.5 and model(clips(channels=10)).shape == (2, 5)
    model = build_model("rubiksnet_tiny", 5, 4, norm_eval=True).train()
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_recomputed_blocks_and_stochastic_depth():
    model = build_model("rubiksnet_tiny", 5, 4, stochastic_depth=0.2).train()
    p = [getattr(block.join, "p", 0.0) for _, _, block in model.blocks()]
    assert p == pytest.approx([0.2 * i / (len(p) - 1) for i in range(sum(TINY_LAYERS))])
    model = build_model("rubiksnet_tiny", 5, 4).double().train()
    gradients = []
    for recompute in (False, True):
        model.activation_checkpointing(recompute)
        model.zero_grad()
        model(clips().double()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_videos_do_not_mix_and_the_order_counts():
    model, x = build_model("rubiksnet_tiny", 5, 4).eval(), clips(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(clip[None]) for clip in x]), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(x), model(x.flip(1)), rtol=1e-3)
