"""TAM against the released code and against its formula; the released files of TANet."""

import pytest
import torch
from golden_values import check_module, table
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from models import WeightsError, build_model, load_weights
from models.export import export_program
from models.weights import released_model
from ops import TAM

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    ("tag", "module", "shape"), [("c32_t8", (32, 8), (16, 32, 7, 6)), ("c16_t5", (16, 5), (15, 16, 3, 4))]
)
def test_released_values(tag, module, shape, mode):
    check_module(table("compared/tam_module.npz"), f"tam_{tag}@{mode}", TAM(*module), shape)


def normalised(x: torch.Tensor, norm: nn.BatchNorm1d) -> torch.Tensor:
    """BN over all dimensions but the second."""
    dims = [dim for dim in range(x.dim()) if dim != 1]
    mean, var = (x.mean(dims), x.var(dims, correction=0)) if norm.training else (norm.running_mean, norm.running_var)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)


def tam_by_definition(tam: TAM, x: torch.Tensor) -> torch.Tensor:
    """The formula, frame by frame, with the weighted frames z."""
    w1, v1, w2, v2 = tam.G[0].weight, tam.L[0].weight, tam.G[3].weight, tam.L[3].weight
    t = w1.shape[1]
    clips = x.unflatten(0, (-1, t)).transpose(1, 2)  # (N, C, T, H, W)
    n, c = clips.shape[:2]
    p = clips.mean((3, 4))
    a = (normalised(p.reshape(n * c, t) @ w1.T, tam.G[1]).relu() @ w2.T).softmax(1).view(n, c, 3, 1, 1)
    padded = torch.cat([torch.zeros_like(p[..., :1]), p, torch.zeros_like(p[..., :1])], 2)
    v = sum(torch.einsum("dc,nct->ndt", v1[..., k], padded[..., k : k + t]) for k in range(3))
    s = torch.einsum("cd,ndt->nct", v2[..., 0], normalised(v, tam.L[1]).relu()).sigmoid()
    z = [clips[:, :, i] * s[:, :, i, None, None] for i in range(t)]
    frames = [sum(a[:, :, k] * z[i + k - 1] for k in range(3) if 0 <= i + k - 1 < t) for i in range(t)]
    return torch.stack(frames, 1).flatten(0, 1)


def random_tam(seed: int, *args, **options) -> TAM:
    torch.manual_seed(seed)
    tam = TAM(*args, **options).double()
    for tensor in [*tam.parameters(), *tam.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5) if tensor.dim() == 1 else tensor.data.normal_()
    return tam


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("shape", "num_segments", "options"),
    [
        ((6, 8, 5, 3), 3, {}),
        ((32, 12, 1, 1), 16, {"alpha": 1}),
        ((4, 16, 2, 7), 1, {"beta": 2}),
        ((14, 4, 6, 6), 7, {}),
    ],
)
def test_other_sizes(shape, num_segments, options, training, memory_format):
    """Outputs and all gradients, in both memory layouts, which the module keeps."""
    tam = random_tam(sum(shape), shape[1], num_segments, **options).train(training)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn_like(x)
    expected = tam_by_definition(tam, x)
    y = tam(x)
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad((y * weight).sum(), [x, *tam.parameters()])
    assert y.is_contiguous(memory_format=memory_format) and found[0].is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weight).sum(), [x, *tam.parameters()]))


def test_gradients_of_first_and_second_order():
    tam, x = random_tam(0, 4, 3), torch.randn(6, 4, 2, 1, dtype=torch.float64, requires_grad=True)
    tam.eval()  # BN of so few numbers is nearly singular in training mode
    inputs = [x, *tam.parameters()]
    names = [name for name, _ in tam.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(tam, dict(zip(names, parameters, strict=True)), x)

    assert gradcheck(run, inputs) and gradgradcheck(run, inputs)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_compilers_see_plain_operations(memory_format):
    tam = random_tam(1, 8, 4)
    x = torch.randn(8, 8, 3, 5, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    compiled = torch.compile(tam, fullgraph=True, backend="eager")
    for training in (True, False):
        tam.train(training)
        torch.testing.assert_close(compiled(x), tam(x))
        gradients = [
            torch.autograd.grad(module(x).square().sum(), [x, *tam.parameters()]) for module in (compiled, tam)
        ]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_branches_keep_their_precision_in_autocast(dtype):
    tam, seen = random_tam(2, 8, 4).float(), []
    tam.G.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))
    tam.L.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))
    x = torch.randn(8, 8, 3, 5).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = tam(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype and seen == [torch.float32] * 4
    torch.testing.assert_close(y.float(), tam(x.float()), rtol=2e-2, atol=2e-2)
    assert tam.bfloat16()(x.bfloat16()).dtype == torch.bfloat16  # weights in half precision


def test_it_does_not_start_as_the_identity():
    """As released: the kernels average, and the importance is near one half."""
    torch.manual_seed(0)
    tam = TAM(64, 8).eval()
    y = tam(torch.ones(8, 64, 2, 2))
    assert 0.4 < y[1:-1].mean() < 0.6 and 0.2 < y[0].mean() < 0.4


def test_errors():
    with pytest.raises(ValueError, match="12 frames are not a multiple of num_segments 8"):
        TAM(16, 8)(torch.zeros(12, 16, 4, 4))


def released(model: nn.Module, prefix: str = "module.") -> dict:
    """The state of a network under the released names."""
    parts = [(key, key.split(".")) for key in model.state_dict()]
    names = {
        key: part if part[3:4] == ["tam"] or len(part) < 5 else [*part[:3], "net", *part[3:]] for key, part in parts
    }
    return {prefix + ".".join(names[key]): value for key, value in model.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_files_are_loaded(prefix):
    model, other = build_model("tanet_tiny", 5, 4), build_model("tanet_tiny", 5, 4)
    state = released(model, prefix)
    assert {f"{prefix}base_model.layer1.0.{name}.weight" for name in ("net.downsample.0", "tam.L.3")} < state.keys()
    report = load_weights(other, {"state_dict": state})
    assert report.layout == "TAM" and len(report.loaded) == len(other.state_dict()) and not report.missing
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert released_model(state) == "tanet_r50" and released_model(model.state_dict()) is None


def test_a_file_of_another_number_of_frames_is_refused():
    state = released(build_model("tanet_tiny", 5, 8))
    with pytest.raises(WeightsError, match="trained with 8 frames, the model has num_segments 4"):
        load_weights(build_model("tanet_tiny", 5, 4), state)


def test_export(tmp_path):
    assert export_program(build_model("tanet_tiny", 5, 4), tmp_path / "net.pt2", 32) < 1e-4
