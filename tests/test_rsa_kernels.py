"""``RSA.kernels`` against the paper's equations with full H = H1 H2^T and P = H2 P1^T and explicit neighbourhoods."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models import build_model
from ops import RSA
from ops.rsa import RELATIONS

TOLERANCE = {"rtol": 0, "atol": 1e-10}
odd = st.sampled_from([1, 3, 5])


def unit(x: torch.Tensor) -> torch.Tensor:
    """L2-normalised over the channels: (N, C, T, H, W) -> the same."""
    return x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt()


def neighbourhoods(x: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """(N, C, T, H, W) -> (N, T, H, W, M, C). Positions outside of the clip are zero."""
    x = F.pad(x, [k // 2 for k in reversed(size) for _ in range(2)])
    for dim, k in enumerate(size, start=2):
        x = x.unfold(dim, k, 1)
    return x.flatten(5).movedim(1, -1)


def parts(rsa: RSA, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (N, L, T, H, W, C), and keys and values in neighbourhoods (N, T, H, W, M, C)."""
    projected, heads, key, value = rsa.projection(x), rsa.num_heads, rsa.key_dim, rsa.value_dim
    queries, keys = projected[:, : heads * key], projected[:, heads * key : projected.shape[1] - value]
    queries = [unit(query).movedim(1, -1) for query in queries.split(key, dim=1)]
    keys, values = (neighbourhoods(unit(y), rsa.kernel_size) for y in (keys, projected[:, -value:]))
    return torch.stack(queries, 1), keys, values


def by_definition(rsa: RSA, x: torch.Tensor, part: str) -> torch.Tensor:
    """kappa^V = P x^Q, kappa^R = vec(1 (x^Q)^T . X^K) H, or their sum: (N, L, T, H, W, M)."""
    x_q, x_k, _ = parts(rsa, x)
    h2 = rsa.H2.weight.flatten(1).T  # (M, D)
    kernel = 0
    if "V" in part:
        p = h2 if rsa.kernel_type == "V" else h2 @ rsa.P1[0].T  # (M, C)
        kernel = kernel + x_q @ p.T
    if "R" in part:
        m, c = x_k.shape[-2:]
        h1 = rsa.H1.weight.view(c, -1, m).permute(2, 0, 1).flatten(0, 1)  # (MC, D)
        hadamard = x_q[..., None, :] * x_k[:, None]  # 1 (x^Q)^T . X^K: (N, L, T, H, W, M, C)
        kernel = kernel + hadamard.flatten(-2) @ (h1 @ h2.T)
    return kernel


def applied(rsa: RSA, kernels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The module's output: the kernels applied to X^V + X^R, then the stride's pool."""
    *_, x_v = parts(rsa, x)
    context = torch.zeros_like(x_v)
    if rsa.feat_type != "R":
        context = context + (x_v if rsa.feat_type == "V" else x_v @ rsa.I[0])  # I is the identity at the start
    if rsa.feat_type != "V":
        context = context + x_v @ (x_v.mT @ rsa.G.weight.flatten(1).T)
    y = kernels.flatten(5)[..., None, :] @ context[:, None]  # (N, L, T, H, W, 1, V)
    y = y.squeeze(-2).permute(0, 2, 5, 1, 3, 4).flatten(2, 3)  # (N, T, V*L, H, W)
    return rsa.pool(y.flatten(0, 1)).unflatten(0, y.shape[:2]).transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    kernel_size=st.tuples(odd, odd, odd),
    heads=st.integers(1, 3),
    dims=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    kernel_type=st.sampled_from(RELATIONS),
    feat_type=st.sampled_from(RELATIONS),
    stride=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_kernels_are_the_papers_and_give_the_output(
    shape, kernel_size, heads, dims, kernel_type, feat_type, stride, seed
):
    torch.manual_seed(seed)
    key, value, latent = dims
    latent = key if kernel_type == "V" else latent
    arguments = (heads, key, value, latent, kernel_size, stride, kernel_type, feat_type, "reference")
    rsa = RSA(5, 7, *arguments).double()
    n, t, h, w = shape
    x = torch.randn(n, 5, t, h, w, dtype=torch.float64)
    with torch.no_grad():
        if feat_type == "VplusR":
            rsa.I.add_(0.3 * torch.randn_like(rsa.I))  # as training changes it
        kernels = rsa.kernels(x)
        assert kernels.shape == (n, heads, t, h, w, *kernel_size)
        for part in RELATIONS if kernel_type == "VplusR" else [kernel_type]:
            expected = by_definition(rsa, x, part).unflatten(-1, kernel_size)
            torch.testing.assert_close(rsa.kernels(x, part=part), expected, **TOLERANCE)
        torch.testing.assert_close(kernels, expected, **TOLERANCE)  # the last part is the default
        torch.testing.assert_close(applied(rsa, kernels, x), rsa(x), **TOLERANCE)


@pytest.mark.parametrize("part", RELATIONS)
def test_chosen_positions_are_those_of_the_whole(part):
    rsa, x = RSA(6, 8, 4, kernel_size=(3, 5, 3)).double(), torch.randn(2, 6, 4, 5, 3, dtype=torch.float64)
    places = [(0, 0, 0), (3, 4, 2), (2, 1, 0), (2, 1, 0)]
    t, y, x_ = zip(*places, strict=True)
    chosen = rsa.kernels(x, positions=places, part=part)
    assert chosen.shape == (2, 4, 4, 3, 5, 3)
    torch.testing.assert_close(chosen, rsa.kernels(x, part=part)[:, :, t, y, x_], **TOLERANCE)
    assert rsa.kernels(x, positions=[]).shape == (2, 4, 0, 3, 5, 3)


def test_chosen_positions_hold_no_kernels_of_others(monkeypatch):
    """No tensor has as many numbers as the kernels of all positions, or as the neighbourhoods of all positions."""
    rsa, x = RSA(8, 8, 2, kernel_size=(5, 7, 7)), torch.randn(1, 8, 4, 9, 9)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            largest = max(largest, result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    with torch.no_grad(), Watch():
        rsa.kernels(x, positions=[(1, 2, 3)])
    assert largest < 4 * 9 * 9 * 245 / 4
    with torch.no_grad(), Watch():
        rsa.kernels(x)
    assert largest == 2 * 4 * 9 * 9 * 245


def test_kernels_of_a_network_give_its_layers_outputs():
    """In a network, RSA takes frames (N*T, C, H, W), and its method takes the same."""
    torch.manual_seed(0)
    model = build_model("rsanet_tiny", 3, 4).double().eval()
    model.set_backend("reference")
    layers = [module for module in model.modules() if isinstance(module, RSA)]
    seen = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, x, y: seen.append((layer, x[0], y)))
    with torch.no_grad():
        model(torch.randn(2, 4, 3, 32, 32, dtype=torch.float64))
        assert len(seen) == 3
        for layer, x, y in seen:
            kernels = layer.kernels(x)
            assert kernels.shape == (2, 8, 4, *x.shape[-2:], 5, 7, 7)
            clips = x.unflatten(0, (2, 4)).transpose(1, 2)
            torch.testing.assert_close(applied(layer, kernels, clips).transpose(1, 2).flatten(0, 1), y, **TOLERANCE)
            torch.testing.assert_close(
                layer.kernels(x, [(3, 0, 1)], "R"), layer.kernels(x, part="R")[:, :, 3, 0, 1][:, :, None]
            )


def test_gradients_flow_through_the_kernels():
    rsa = RSA(4, 4, 2, kernel_size=3).double()
    x = torch.randn(1, 4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rsa.kernels(x, positions=[(1, 2, 0)]), x)
    rsa.kernels(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (rsa.H1.weight, rsa.H2.weight, rsa.P1, rsa.projection.weight))
    assert rsa.G.weight.grad is None


@pytest.mark.parametrize(
    ("kernel_type", "arguments", "message"),
    [
        ("V", {"part": "R"}, "part='R', but kernel_type is 'V'; choose V, or leave part out"),
        ("R", {"part": "V"}, "part='V', but kernel_type is 'R'; choose R, or leave part out"),
        ("R", {"part": "VplusR"}, "part='VplusR', but kernel_type is 'R'; choose R, or leave part out"),
        ("VplusR", {"part": "both"}, "part='both', but kernel_type is 'VplusR'; choose V, R or VplusR"),
        (
            "V",
            {"positions": [(0, 0, 0), (0, 3, 0)]},
            r"position (0, 3, 0) must be (t, y, x) from (0, 0, 0) to (1, 2, 3)",
        ),
        ("V", {"positions": [(-1, 0, 0)]}, "position (-1, 0, 0) must be (t, y, x)"),
        ("V", {"positions": [(1, 1)]}, "position (1, 1) must be (t, y, x)"),
        ("V", {"x": torch.zeros(1, 5, 2, 3, 4)}, "RSA takes (N, 4, T, H, W), got (1, 5, 2, 3, 4)"),
    ],
)
def test_kernels_refuse(kernel_type, arguments, message):
    rsa = RSA(4, 4, 2, kernel_size=3, kernel_type=kernel_type)
    with pytest.raises(ValueError) as error:
        rsa.kernels(**{"x": torch.zeros(1, 4, 2, 3, 4)} | arguments)
    assert str(error.value).startswith(message)
