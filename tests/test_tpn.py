"""TSM with TPN: the neck and the shifted blocks against the released code, placements, released names, options."""

import re

import pytest
import torch
import torch.nn.functional as F
from golden_values import check_module, formula_parameter, formula_tensor, relative_error, table
from torch import nn

from engine.config import load_recipe
from engine.optim import build_optimizer
from models import WeightsError, build_model, load_weights
from models.resnet import Bottleneck
from models.tpn import TPN_LAYOUT
from models.video_network import WithAuxiliary
from models.weights import released_model
from ops import TemporalPyramid, TemporalShift

GOLDEN = table("compared/tpn_module.npz")


def neck(num_segments: int, **options) -> TemporalPyramid:
    """The neck at a sixteenth of the released width, with 10 auxiliary classes."""
    return TemporalPyramid((64, 128), num_segments, 10, dropout=0.0, **options)


def clips_to_frames(clips: torch.Tensor) -> torch.Tensor:
    return clips.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("stored", "sizes"), [("tpn_w16@train", (8, 6, 5)), ("tpn_w16_t4@eval", (4, 4, 4))])
def test_neck_is_the_released_one(stored, sizes, last):
    tag, _, mode = stored.partition("@")
    t, h, w = sizes
    module = neck(t).train(mode == "train")
    fill = {name: formula_parameter(f"{tag}.{name}", value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict(fill)
    early = formula_tensor(f"{tag}.input0", (2, 64, t, h, w)).requires_grad_()
    late = formula_tensor(f"{tag}.input1", (2, 128, t, (h + 1) // 2, (w + 1) // 2)).requires_grad_()
    frames = [clips_to_frames(x) for x in (early, late)]
    if last:
        frames = [x.contiguous(memory_format=torch.channels_last) for x in frames]

    aux_loss = 0.5 * F.cross_entropy(module.aux_head(frames[0]), torch.tensor([3, 7]))
    assert relative_error(aux_loss, GOLDEN[f"{stored}/loss_aux"]) < 1e-5
    compare_gradients(module, stored, "aux_grad", torch.autograd.grad(aux_loss, [early, *of_head(module)]))

    output = module(*frames)
    assert relative_error(output[:, :, None], GOLDEN[f"{stored}/output"]) < 1e-5
    loss = (output[:, :, None] * formula_tensor(f"{tag}.grad_output", (*output.shape[:2], 1, *output.shape[2:]))).sum()
    gradients = torch.autograd.grad(loss, [early, late, *of_neck(module)])
    assert relative_error(gradients[1], GOLDEN[f"{stored}/grad_input1"]) < 1e-4
    compare_gradients(module, stored, "grad", [gradients[0], *gradients[2:]])
    if mode == "train":
        for name, value in module.named_buffers():
            if "running" in name:
                assert relative_error(value, GOLDEN[f"{stored}/after/{name}"]) < 1e-5, name


def of_head(module: TemporalPyramid) -> list[nn.Parameter]:
    return [parameter for name, parameter in module.named_parameters() if name.startswith("aux_head.")]


def of_neck(module: TemporalPyramid) -> list[nn.Parameter]:
    return [parameter for name, parameter in module.named_parameters() if not name.startswith("aux_head.")]


def compare_gradients(module, stored: str, kind: str, gradients) -> None:
    """The gradient of the early input, then of parameters. Large ones are stored as a norm and a projection."""
    tag = stored.partition("@")[0]
    assert relative_error(gradients[0], GOLDEN[f"{stored}/{kind}_input0"]) < 1e-4
    names = [name for name, _ in module.named_parameters() if name.startswith("aux_head.") == (kind == "aux_grad")]
    compared = 0
    for name, gradient in zip(names, gradients[1:], strict=True):
        if f"{stored}/{kind}/{name}" in GOLDEN.files:
            expected = GOLDEN[f"{stored}/{kind}/{name}"]
            assert relative_error(gradient.view(expected.shape), expected) < 1e-4, name
            compared += 1
        elif kind == "grad":
            norm, projection = GOLDEN[f"{stored}/grad_norm/{name}"]
            probe = formula_tensor(f"{tag}.probe.{name}", gradient.shape)
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name
            assert (gradient * probe).sum().item() == pytest.approx(projection, abs=1e-4 * norm), name
            compared += 1
    keys = [key for key in GOLDEN.files if re.match(rf"{stored}/{kind}(_norm)?/", key)]
    assert compared == len(keys) > 3


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    ("tag", "place", "shape"),
    [("tsm_block_down", "before_block", (8, 32, 6, 5)), ("tsm_block_plain", "before_conv1", (8, 64, 6, 5))],
)
def test_shifted_blocks_are_the_released_ones(tag, place, shape, mode):
    downsample = nn.Sequential(nn.Conv2d(32, 64, 1, 2, bias=False), nn.BatchNorm2d(64))
    block = Bottleneck(32, 16, 2, downsample) if place == "before_block" else Bottleneck(64, 16)
    block.insert(place, "shift", TemporalShift(4))
    check_module(GOLDEN, f"{tag}@{mode}", block, shape)


def neck_by_definition(module: TemporalPyramid, early: torch.Tensor, late: torch.Tensor) -> torch.Tensor:
    """The released steps on clips (N,C,T,h,w) in eval mode, with 3-D convolutions and pools."""

    def step(x, conv, norm):
        weight = conv.weight[:, :, None] if conv.weight.dim() == 4 else conv.weight
        padding = (0, *conv.padding) if conv.weight.dim() == 4 else conv.padding
        stride = (1, *conv.stride) if conv.weight.dim() == 4 else conv.stride
        y = F.conv3d(x, weight, None, stride, padding, groups=conv.groups)
        if norm is None:
            return y
        return F.relu(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))

    def fusion(op, levels):
        branches = [step(level, branch.conv, branch.norm) for branch, level in zip(op.ops, levels, strict=True)]
        return step(torch.cat(branches, 1), op.fusion_conv[0], op.fusion_conv[1])

    t = early.shape[2]
    first = module.spatial_modulation.spatial_modulation[0][0]
    levels = step(early, first.conv, first.bn), late
    modulations = zip(module.temporal_modulation_ops, levels, strict=True)
    a0, a1 = (F.max_pool3d(step(x, op.conv, None), (t, 1, 1), ceil_mode=True) for op, x in modulations)
    t0, t1 = a0 + a1, a1
    c0, c1 = (t0, t1) if module.flow == "cascade" else (a0, a1)
    c1 = c1 + step(c0, module.downsampling_ops[0].conv, None)
    both = torch.cat([fusion(module.level_fusion_op2, (t0, t1)), fusion(module.level_fusion_op, (c0, c1))], 1)
    return step(both, *module.pyramid_fusion_op[:2]).squeeze(2)


@pytest.mark.parametrize("flow", ["cascade", "parallel"])
@pytest.mark.parametrize(("n", "t", "h", "w"), [(1, 1, 1, 1), (3, 5, 7, 4), (2, 16, 6, 3)])
def test_neck_is_its_definition(n, t, h, w, flow):
    torch.manual_seed(t)
    module = neck(t, flow=flow).double().eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight)
    early = torch.randn(n, 64, t, h, w, dtype=torch.float64)
    late = torch.randn(n, 128, t, (h + 1) // 2, (w + 1) // 2, dtype=torch.float64)
    y = module(clips_to_frames(early), clips_to_frames(late))
    torch.testing.assert_close(y, neck_by_definition(module, early, late))
    other = neck(t, flow="parallel" if flow == "cascade" else "cascade").double().eval()
    other.load_state_dict(module.state_dict())
    assert not torch.allclose(y, other(clips_to_frames(early), clips_to_frames(late)))


def test_an_unknown_flow_is_refused():
    with pytest.raises(ValueError, match=r"flow='series' must be one of \('cascade', 'parallel'\)"):
        build_model("tsm_tpn_tiny", 5, 4, flow="series")


@pytest.mark.parametrize(("shift_shortcut", "place"), [(True, "before_block"), (False, "before_conv1")])
def test_where_the_shift_stands(shift_shortcut, place):
    model = build_model("tsm_tpn_r50", 5, 8, shift_shortcut=shift_shortcut)
    for _, index, block in model.blocks():
        places = [name for name, modules in block.inserted.items() if modules]
        assert places == ([place] if index == 0 else ["before_conv1"]) and isinstance(block.shift, TemporalShift)


def test_released_files_load_by_name():
    shapes = table("compared/tpn_r50_state_dict.json")
    state = {f"module.{key}": torch.rand(shape) for key, shape in shapes.items()}
    model = build_model("tsm_tpn_r50", 174, 8)
    report = load_weights(model, {"state_dict": state})
    assert report.layout == "TPN" and len(report.loaded) == 379 == len(model.state_dict())
    assert released_model(state) == "tsm_tpn_r50"
    fusion = state["module.necks.level_fusion_op2.fusion_conv.0.weight"]
    assert torch.equal(model.neck.level_fusion_op2.fusion_conv[0].weight, fusion.squeeze(2))
    assert released_model(model.state_dict()) is None
    with pytest.raises(WeightsError, match="does not fit the model"):
        load_weights(build_model("tsm_r50", 174, 8), state)


def mmaction_name(key: str) -> str:
    """MMAction2's name for a released name: its convolutions and norms are in modules of their own."""
    key = key.replace("necks.", "neck.").replace("downsampling_ops", "downsample_ops").replace("convs.", "conv.")
    key = re.sub(r"(backbone\.(?:layer\d\.\d\.)?)(conv|bn)(\d)\.", lambda m: f"{m[1]}conv{m[3]}.{m[2]}.", key)
    key = re.sub(r"(layer\d\.\d\.conv1\.conv)\.", r"\1.net.", key)
    key = key.replace(".downsample.0.", ".downsample.conv.").replace(".downsample.1.", ".downsample.bn.")
    key = key.replace("level_fusion_op2.", "level_fusion_1.").replace("level_fusion_op.", "level_fusion_2.")
    key = re.sub(r"(level_fusion_\d)\.ops\.(\d)\.conv", r"\1.downsamples.\2.conv.conv", key)
    key = re.sub(r"(level_fusion_\d)\.ops\.(\d)\.norm", r"\1.downsamples.\2.conv.bn", key)
    key = re.sub(r"(fusion_conv|pyramid_fusion)(?:_op)?\.0\.", r"\1.conv.", key)
    key = re.sub(r"(fusion_conv|pyramid_fusion)(?:_op)?\.1\.", r"\1.bn.", key)
    return re.sub(r"(temporal_modulation|downsample)_ops\.(\d)\.conv\.", r"\1_ops.\2.conv.conv.", key)


def test_names_of_mmaction2_are_known():
    released = table("compared/tpn_r50_state_dict.json")
    names = {mmaction_name(key): TPN_LAYOUT.rename(key) for key in released}
    assert {
        "backbone.conv1.conv.weight",
        "backbone.layer1.0.conv1.conv.net.weight",
        "backbone.layer4.0.downsample.bn.running_var",
        "neck.level_fusion_1.downsamples.1.conv.bn.weight",
        "neck.level_fusion_2.fusion_conv.conv.weight",
        "neck.temporal_modulation_ops.1.conv.conv.weight",
        "neck.downsample_ops.0.conv.conv.weight",
        "neck.spatial_modulation.spatial_modulation.0.0.bn.bias",
        "neck.pyramid_fusion.bn.running_mean",
        "neck.aux_head.conv.conv.weight",
        "cls_head.fc_cls.bias",
    } < names.keys()
    assert TPN_LAYOUT.mark(dict.fromkeys(names)) and len(names) == 379
    for name, ours in names.items():
        assert TPN_LAYOUT.rename(name) == ours
    assert names["neck.level_fusion_1.fusion_conv.bn.bias"] == "neck.level_fusion_op2.fusion_conv.1.bias"


def clips(n=3, t=4):
    return torch.randn(n, t, 3, 40, 33, generator=torch.Generator().manual_seed(0))


def test_the_auxiliary_head_works_in_training_only():
    model = build_model("tsm_tpn_tiny", 5, 4)
    output = model.train()(clips())
    assert isinstance(output, WithAuxiliary) and output.logits.shape == output.aux_logits.shape == (3, 5)
    assert model.aux_weight == 0.5 and not torch.equal(output.logits, output.aux_logits)
    calls = []
    model.neck.aux_head.register_forward_hook(lambda *args: calls.append(1))
    assert model.eval()(clips()).shape == (3, 5) and not calls
    assert "neck.aux_head.fc.weight" in model.state_dict()
    assert build_model("tsm_tpn_tiny", 5, 4, dropout=0.2).neck.aux_head.dropout.p == 0.2


def test_initialisation():
    model = build_model("tsm_tpn_r50", 174, 8)
    for linear in (model.new_fc, model.neck.aux_head.fc):
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.01) and not linear.bias.any()
    weight = model.neck.downsampling_ops[0].conv.weight
    bound = (6 / (2 * 3 * 1024)) ** 0.5  # Xavier uniform
    assert 0.99 * bound < weight.abs().max() <= bound
    assert all(m.weight.eq(1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_one_group_of_parameters():
    """Every parameter has the same learning rate and decay."""
    recipe = load_recipe("tsm_tpn_r50", "something_v1")
    groups = build_optimizer(build_model("tsm_tpn_r50", 174, 8), recipe).param_groups
    assert {group["weight_decay"] for group in groups} == {5e-4} and not recipe.lr_multipliers
    assert sum(p.numel() for group in groups for p in group["params"]) == 82_445_724


def test_frozen_norms_and_recomputed_blocks():
    model = build_model("tsm_tpn_tiny", 5, 4, norm_eval=True).train()
    assert not any(m.training or m.weight.requires_grad for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    model = build_model("tsm_tpn_tiny", 5, 4, partial_bn=True, frozen_stages=1).train()
    assert all(m.training for m in model.neck.modules())
    assert not any(p.requires_grad for p in model.base_model.layer1.parameters())
    model = build_model("tsm_tpn_tiny", 5, 4, dropout=0.0, stochastic_depth=0.0).double().train()
    gradients = []
    for recompute in (False, True):
        model.activation_checkpointing(recompute)
        model.zero_grad()
        sum(model(clips().double())).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_it_starts_from_an_imagenet_file():
    model = build_model("tsm_tpn_r50", 5, 4)
    imagenet = build_model("tsn_r50", 5, 4).base_model.state_dict()
    before = model.neck.pyramid_fusion_op[0].weight.clone()
    report = load_weights(model, imagenet)
    assert report.layout == "imagenet" and len(report.loaded) == len(imagenet)
    assert all(key.startswith(("neck.", "new_fc.")) for key in report.missing)
    assert torch.equal(model.neck.pyramid_fusion_op[0].weight, before)
