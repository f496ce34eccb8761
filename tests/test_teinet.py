"""TEI against the values of both readings and against its formulas; the files of TEINet."""

import pytest
import torch
from golden_values import check_module, compared_state, table
from torch.autograd import gradcheck

from models import build_model, load_weights
from models.export import export_program
from ops import TEI
from ops.teinet import READINGS

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("reading", READINGS)
def test_stored_values(reading):
    golden = table("compared/teinet_module.npz")
    check_module(golden, f"tei_{reading}_c32@eval", TEI(32, 8, reading=reading), (16, 32, 7, 6))


def test_it_starts_as_a_temporal_shift():
    torch.manual_seed(0)
    tei = TEI(32, 8)
    assert torch.equal(tei.tim.dwconv.weight, torch.from_numpy(table("compared/teinet_module.npz")["init/dwconv"]))
    x = torch.randn(2, 8, 32, 3, 2)
    y = tei.tim(x)
    assert torch.equal(y[:, :-1, :4], x[:, 1:, :4]) and not y[:, -1, :4].any()
    assert torch.equal(y[:, 1:, 4:8], x[:, :-1, 4:8]) and not y[:, 0, 4:8].any()
    assert torch.equal(y[:, :, 8:], x[:, :, 8:])
    gates = tei.mem(torch.ones(2, 8, 32, 1, 1))
    assert 0.4 < gates[:, :-1].mean() < 0.6 and (gates[:, -1] == 1).all()


def tei_by_definition(tei: TEI, x: torch.Tensor) -> torch.Tensor:
    """The formulas, frame by frame."""
    mem, kernel = tei.mem, tei.tim.dwconv.weight[:, 0, :, 0]  # (C, 3)
    frames = x.unflatten(0, (-1, tei.num_segments)).unbind(1)  # T of (N, C, H, W)
    enhanced = []
    for frame, following in zip(frames[:-1], frames[1:], strict=True):
        now, later = frame.mean((2, 3)), following.mean((2, 3))
        d = later @ mem.fc2.weight.T + mem.fc2.bias - now @ mem.fc1.weight.T - mem.fc1.bias
        if mem.reading == "paper":
            a = torch.sigmoid(d @ mem.fc3.weight.T + mem.fc3.bias)
        else:
            a = torch.sigmoid(d) @ mem.fc3.weight.T + mem.fc3.bias
        enhanced.append(frame * a[:, :, None, None])
    enhanced = [torch.zeros_like(frames[0]), *enhanced, frames[-1], torch.zeros_like(frames[0])]
    taps = kernel.T[:, None, :, None, None]  # 3 of (1, C, 1, 1)
    windows = [enhanced[t : t + 3] for t in range(len(frames))]
    return torch.stack([sum(k * u for k, u in zip(taps, window, strict=True)) for window in windows], 1).flatten(0, 1)


def random_tei(seed: int, *args, **options) -> TEI:
    torch.manual_seed(seed)
    tei = TEI(*args, **options).double()
    for parameter in tei.parameters():
        parameter.data.normal_()
    return tei


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(
    ("shape", "num_segments", "reduction"),
    [((6, 8, 5, 3), 3, 8), ((32, 24, 1, 1), 16, 4), ((4, 16, 2, 7), 1, 8), ((14, 17, 6, 6), 7, 2)],
)
def test_other_sizes(shape, num_segments, reduction, reading, memory_format):
    """Outputs and all gradients, in both memory layouts, which the module keeps."""
    tei = random_tei(sum(shape), shape[1], num_segments, reduction, reading)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn_like(x)
    expected = tei_by_definition(tei, x)
    y = tei(x)
    torch.testing.assert_close(y, expected)
    inputs = [x, *tei.parameters()] if num_segments > 1 else [x, tei.tim.dwconv.weight]  # else there are no differences
    found = torch.autograd.grad((y * weight).sum(), inputs)
    assert y.is_contiguous(memory_format=memory_format) and found[0].is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weight).sum(), inputs))


@pytest.mark.parametrize("reading", READINGS)
def test_gradients(reading):
    tei, x = random_tei(0, 8, 3, reading=reading), torch.randn(6, 8, 2, 1, dtype=torch.float64, requires_grad=True)
    inputs, names = [x, *tei.parameters()], [name for name, _ in tei.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(tei, dict(zip(names, parameters, strict=True)), x)

    assert gradcheck(run, inputs)


def test_frames_in_channels_last_memory_are_not_copied():
    """The depthwise convolution sees the memory of the enhanced frames, and the module returns its output's memory."""
    tei, seen = TEI(16, 4), []
    tei.mem.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tei.tim.dwconv.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))
    y = tei(torch.randn(8, 16, 6, 5).contiguous(memory_format=torch.channels_last))
    enhanced, image, filtered = seen
    assert image.data_ptr() == enhanced.data_ptr() and filtered.data_ptr() == y.data_ptr()
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_module():
    tei, x = random_tei(1, 8, 4), torch.randn(8, 8, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(tei, fullgraph=True, backend="eager")(x), tei(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gates_keep_their_precision_in_autocast(dtype):
    tei, seen = random_tei(2, 8, 4).float(), []
    tei.mem.fc3.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))
    x = torch.randn(8, 8, 3, 5).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = tei(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype and seen == [torch.float32] * 2
    torch.testing.assert_close(y.float(), tei(x.float()), rtol=2e-2, atol=2e-2)
    assert tei.bfloat16()(x.bfloat16()).dtype == torch.bfloat16  # weights in half precision


def test_errors():
    with pytest.raises(ValueError, match="12 frames are not a multiple of num_segments 8"):
        TEI(16, 8)(torch.zeros(12, 16, 4, 4))
    with pytest.raises(ValueError, match=r"reading='b' must be one of \('paper', 'thirdparty'\)"):
        TEI(16, 8, reading="b")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_are_loaded(prefix):
    """The names are ours, because nobody released a file. One file fits any number of frames and both readings."""
    state = {prefix + key: value for key, value in compared_state("teinet").items()}
    for num_segments, reading in ((8, "paper"), (16, "thirdparty")):
        model = build_model("teinet_r50", 174, num_segments, reading=reading)
        report = load_weights(model, {"state_dict": state})
        assert len(report.loaded) == len(model.state_dict()) and not report.missing and not report.unexpected
        assert model.base_model.layer3[5].tei.mem.reading == reading


def test_export(tmp_path):
    assert export_program(build_model("teinet_tiny", 5, 4), tmp_path / "net.pt2", 32) < 1e-4
