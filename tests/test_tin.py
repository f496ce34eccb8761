"""TIN against the released code and against its formula; the files of the release and of MMAction2."""

import re

import pytest
import torch
from golden_values import check_module, formula_tensor, relative_error, table
from torch.autograd import gradcheck, gradgradcheck

from models import WeightsError, build_model, load_weights
from models.costs import costs
from models.export import export_program
from models.weights import released_model
from ops import TIN
from ops.tin import interpolation

FORMATS = [torch.contiguous_format, torch.channels_last]
RELEASED = {
    "offset.conv": "biasnet.net.conv",
    "offset.fc1": "biasnet.net.fc",
    "offset.fc2": "biasnet.net.lastlayer",
    "weight.conv": "weightnet.net.lastlayer",
}
MMACTION = {"offset": "offset_net", "weight": "weight_net"}


def released_name(name: str) -> str:
    layer, _, leaf = name.rpartition(".")
    return f"{RELEASED[layer]}.{leaf}"


@pytest.mark.parametrize(
    ("tag", "module", "shape"),
    [
        ("c64_t8", (64, 8), (16, 64, 7, 6)),
        ("c64_t16", (64, 16), (32, 64, 3, 4)),
        ("c64_t8_1px", (64, 8), (16, 64, 1, 1)),
        ("c32_t5_div2", (32, 5, 2), (10, 32, 5, 4)),
    ],
)
def test_released_values(tag, module, shape):
    golden, tin = table("compared/tin_module.npz"), TIN(*module)
    seen = {}
    tin.offset.register_forward_hook(lambda module, inputs, output: seen.update(offset=output))
    tin.weight.register_forward_hook(lambda module, inputs, output: seen.update(weight=output))
    check_module(golden, f"tin_{tag}", tin, shape, released_name)
    offsets = torch.cat([seen["offset"], -seen["offset"]], 1)
    assert relative_error(offsets, golden[f"tin_{tag}/offset"]) < 1e-5
    weights = seen["weight"].mT.repeat(1, 1, 2).repeat_interleave(tin.moving // 4, 2)  # of each channel
    assert relative_error(weights, golden[f"tin_{tag}/weight"]) < 1e-5


@pytest.mark.parametrize("tag", ["sampler", "sampler2"])
def test_released_interpolation(tag):
    """Also at offsets that are integers, where the derivative is the one from the right, and beyond the clip's ends."""
    golden = table("compared/tin_module.npz")
    offsets = torch.from_numpy(golden[f"{tag}/offset"]).requires_grad_()
    assert any((offsets == offsets.round()).flatten())
    x = formula_tensor(f"{tag}.input", (2, 8, 8, 3, 4)).requires_grad_()
    groups = x.unflatten(2, (4, 2))  # (N, T, G, c, H, W)
    output = torch.einsum("ngts,nsgchw->ntgchw", interpolation(offsets, 8), groups).flatten(2, 3)
    (output * formula_tensor(f"{tag}.grad_output", output.shape)).sum().backward()
    assert relative_error(output, golden[f"{tag}/output"]) < 1e-5
    assert relative_error(x.grad, golden[f"{tag}/grad_input"]) < 1e-4
    assert relative_error(offsets.grad, golden[f"{tag}/grad_offset"]) < 1e-4


def tin_by_definition(tin: TIN, x: torch.Tensor) -> torch.Tensor:
    """The formula with shifted frames."""
    t, f = tin.num_segments, tin.moving
    clips = x.unflatten(0, (-1, t)).transpose(1, 2)  # (N, C, T, H, W)
    p = torch.nn.functional.pad(clips[:, :f].mean((3, 4)), (1, 1))  # (N, f, T + 2)

    def convolved(conv):
        taps = [torch.einsum("oc,nct->not", conv.weight[..., k], p[..., k : k + t]) for k in range(3)]
        return sum(taps) + conv.bias[:, None]

    hidden = (convolved(tin.offset.conv)[:, 0] @ tin.offset.fc1.weight.T + tin.offset.fc1.bias).relu()
    b1, b2 = (4 * (torch.sigmoid(hidden @ tin.offset.fc2.weight.T + tin.offset.fc2.bias) - 0.5)).unbind(1)
    w1, w2 = (2 * convolved(tin.weight.conv).sigmoid()).unbind(1)  # each (N, T)
    parts = []
    for group, (b, w) in enumerate([(b1, w1), (b2, w2), (-b1, w1), (-b2, w2)]):
        part = clips[:, group * f // 4 : (group + 1) * f // 4]
        videos = []
        for video, offset, weights in zip(part, b, w, strict=True):  # video (c, T, H, W)
            low = int(offset.floor())
            fraction = offset - low
            moved = (1 - fraction) * shifted(video, low) + fraction * shifted(video, low + 1)
            videos.append(moved * weights[:, None, None])
        parts.append(torch.stack(videos))
    return torch.cat([*parts, clips[:, f:]], 1).transpose(1, 2).flatten(0, 1)


def shifted(video: torch.Tensor, frames: int) -> torch.Tensor:
    """Move a video (c, T, H, W) to later frames by an integer; zeros enter."""
    t = video.shape[1]
    zeros = torch.zeros_like(video)
    return torch.cat([zeros, video, zeros], 1)[:, t - frames : 2 * t - frames] if abs(frames) < t else zeros


def random_tin(seed: int, *args) -> TIN:
    torch.manual_seed(seed)
    tin = TIN(*args).double()
    for parameter in tin.parameters():
        parameter.data.normal_()
    return tin


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("shape", "num_segments", "shift_div"),
    [
        ((12, 32, 5, 3), 3, 4),
        ((32, 16, 1, 1), 16, 2),
        ((4, 16, 2, 7), 1, 4),
        ((14, 8, 6, 6), 7, 1),
        ((8, 40, 3, 3), 2, 5),
    ],
)
def test_other_sizes(shape, num_segments, shift_div, memory_format):
    """Outputs and all gradients, in both memory layouts, which the module keeps."""
    tin = random_tin(sum(shape), shape[1], num_segments, shift_div)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn_like(x)
    expected = tin_by_definition(tin, x)
    y = tin(x)
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad((y * weight).sum(), [x, *tin.parameters()])
    assert y.is_contiguous(memory_format=memory_format) and found[0].is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weight).sum(), [x, *tin.parameters()]))
    other = torch.channels_last if memory_format == torch.contiguous_format else torch.contiguous_format
    mixed = torch.autograd.grad(tin(x), [x, *tin.parameters()], weight.contiguous(memory_format=other))
    torch.testing.assert_close(mixed, found)  # a gradient in another layout than the features


def test_gradients_of_first_and_second_order():
    tin, x = random_tin(0, 16, 3), torch.randn(6, 16, 2, 1, dtype=torch.float64, requires_grad=True)
    inputs, names = [x, *tin.parameters()], [name for name, _ in tin.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(tin, dict(zip(names, parameters, strict=True)), x)

    assert gradcheck(run, inputs) and gradgradcheck(run, inputs)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_compilers_see_plain_operations(memory_format):
    tin = random_tin(1, 32, 4)
    x = torch.randn(8, 32, 3, 5, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    compiled = torch.compile(tin, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), tin(x))
    gradients = [torch.autograd.grad(module(x).square().sum(), [x, *tin.parameters()]) for module in (compiled, tin)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_nets_keep_their_precision_in_autocast(dtype):
    tin, seen = random_tin(2, 32, 4).float(), []
    for net in (tin.offset, tin.weight):
        net.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))
    x = torch.randn(8, 32, 3, 5).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = tin(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype and seen == [torch.float32] * 4
    torch.testing.assert_close(y.float(), tin(x.float()), rtol=2e-2, atol=2e-2)
    assert tin.bfloat16()(x.bfloat16()).dtype == torch.bfloat16  # weights in half precision


def test_it_starts_half_a_frame_apart():
    """As released, and not without a shift: groups 0 and 1 half a frame later, groups 2 and 3 half a frame earlier."""
    torch.manual_seed(0)
    offsets, weights = [], []
    for _ in range(20):
        tin, pooled = TIN(256, 8), torch.rand(4, 64, 8)
        assert tin.offset.fc2.bias.tolist() == pytest.approx([0.5108] * 2) and not tin.weight.conv.bias.any()
        offsets.append(tin.offset(pooled))
        weights.append(tin.weight(pooled))
    assert torch.stack(offsets).mean().item() == pytest.approx(0.5, abs=0.06)
    assert torch.stack(weights).mean().item() == pytest.approx(1, abs=0.05)


def test_errors():
    with pytest.raises(ValueError, match="12 frames are not a multiple of num_segments 8"):
        TIN(16, 8)(torch.zeros(12, 16, 4, 4))
    for channels, moving in ((24, 6), (3, 0)):
        with pytest.raises(
            ValueError, match=f"channels={channels} with shift_div=4 gives {moving} interlaced channels"
        ):
            TIN(channels, 8)


def test_multiply_adds_of_the_interlacing_are_not_counted():
    """As in the published counts."""
    t = 16
    tin, tsn = (costs(build_model(f"{name}_tiny", 5, t), t, 32)[1] for name in ("tin", "tsn"))
    nets = sum(3 * f * 3 * t + t * t + 2 * t for f in (4, 16, 16, 32, 32, 64))  # f of the six blocks
    assert tin == tsn + nets


def released(model: torch.nn.Module) -> dict:
    """The state of a network under the names of the authors' release."""
    state = {}
    for key, value in model.state_dict().items():
        key = re.sub(r"(layer\d\.\d\.conv1)\.weight", r"\1.net2.weight", key)
        key = re.sub(r"shift\.(.+)", lambda found: f"conv1.net1.{released_name(found[1])}", key)
        state[key] = value
    return state


def of_mmaction2(model: torch.nn.Module) -> dict:
    """The state of a network under the names of MMAction2."""
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace("new_fc.", "cls_head.fc_cls.").replace("base_model.", "backbone.")
        key = key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")
        key = re.sub(r"(layer\d\.\d)\.conv1\.weight", r"\1.conv1.conv.net2.weight", key)
        key = re.sub(r"(?<!shift\.)conv(\d)\.weight", r"conv\1.conv.weight", key)
        key = re.sub(r"bn(\d)\.", r"conv\1.bn.", key)
        key = re.sub(r"shift\.(\w+)\.", lambda found: f"conv1.conv.net1.{MMACTION[found[1]]}.", key)
        state[key] = value
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("names", [released, of_mmaction2])
def test_released_files_are_loaded(names, prefix):
    model, other = build_model("tin_tiny", 5, 4), build_model("tin_tiny", 5, 4)
    state = {prefix + key: value for key, value in names(model).items()}
    part = "conv1.net1.biasnet.net.lastlayer.bias" if names is released else "conv1.conv.net1.offset_net.fc2.bias"
    assert f"{prefix}{'base_model' if names is released else 'backbone'}.layer2.0.{part}" in state
    report = load_weights(other, {"state_dict": state})
    assert report.layout == "TIN" and len(report.loaded) == len(other.state_dict()) and not report.missing
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert released_model(state) == "tin_r50" and released_model(model.state_dict()) is None


def test_a_file_of_another_number_of_frames_is_refused():
    state = released(build_model("tin_tiny", 5, 8))
    with pytest.raises(WeightsError, match="trained with 8 frames, the model has num_segments 4"):
        load_weights(build_model("tin_tiny", 5, 4), state)


def test_export(tmp_path):
    assert export_program(build_model("tin_tiny", 5, 4), tmp_path / "net.pt2", 32) < 1e-4
