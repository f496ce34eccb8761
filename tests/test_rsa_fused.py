"""Compares RSA's fused path with the plain path: errors, gradients, memory layouts, autocast, compilation, export."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

import ops.rsa
from ops import RSA, rsa_backend_reason, rsa_fused
from ops.rsa import RELATIONS, Backend

VARIANTS = [(kernel, feat) for kernel in RELATIONS for feat in RELATIONS]
odd = st.sampled_from([1, 3, 5])
# With these values of MAPS_PAY the context is always computed by convolutions, or always by maps.
FORMS = {"convolved": 1e9, "maps": 0.0}
FUSED = rsa_fused.relational_self_attention


def perturbed(**settings) -> RSA:
    """An operator whose I is not the identity. Its projection is the identity: the input is queries, keys and values.

    Such a projection does not round. Rounding would determine the error if a vector's norm is small by chance.
    """
    width = RSA(1, **settings).projection.out_channels
    rsa = RSA(width, **settings)
    with torch.no_grad():
        for parameter in rsa.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        rsa.projection.weight.copy_(torch.eye(width)[..., None, None, None])
    return rsa


def results(rsa: RSA, backend: str, dtype: torch.dtype, x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """The output and every gradient, in float64, of a computation in ``dtype``."""
    rsa.backend = backend
    rsa.to(dtype).zero_grad()
    x = x.detach().to(dtype).requires_grad_()
    y = rsa(x)
    (y * weight.to(dtype)).sum().backward()
    tensors = [y.detach(), x.grad, *(p.grad for p in rsa.parameters())]
    return [tensor.cpu().double() for tensor in tensors]


def assert_as_exact_as_the_plain_path(
    rsa: RSA, shape: tuple[int, ...], dtype: torch.dtype, draws: int = 1, device: str = "cpu"
) -> None:
    """The error against float64 is at most twice (output) or three times (gradients) the plain path's in ``dtype``.

    Both errors are root mean squares. For small inputs they are taken over several inputs, because the plain path may
    be exact by luck on one. An error below one rounding of ``dtype`` counts as one rounding. No vector is near zero,
    because its rounding would determine both errors; ``test_vectors_near_zero`` has such vectors.
    """
    rsa.to(device, dtype).double()  # all use numbers that the type can represent
    squares = []  # per tensor: of the expected values, the plain path's errors, the fused path's errors
    for _ in range(draws):
        x = torch.randn(shape)
        x = (x + 0.5 * x.sign()).to(device, dtype).double()
        with torch.no_grad():
            weight = torch.randn_like(rsa(x)).to(dtype).double()
        exact, plain, fused = (
            results(rsa, backend, kind, x, weight)
            for backend, kind in (("reference", torch.float64), ("reference", dtype), ("fused", dtype))
        )
        rsa.double()
        rows = [
            (e.square().sum(), (p - e).square().sum(), (f - e).square().sum())
            for e, p, f in zip(exact, plain, fused, strict=True)
        ]
        squares.append(torch.tensor(rows))
    expected, plain, fused = torch.stack(squares).sum(0).sqrt().T
    # On some CPUs PyTorch's Conv3d gives NaN in bfloat16. Then the plain path has no error to compare with.
    plain = plain.nan_to_num(nan=0.0)
    for i in range(len(expected)):
        allowed = (2 if i == 0 else 3) * max(plain[i], torch.finfo(dtype).eps * expected[i])
        assert fused[i] <= allowed, f"tensor {i}: {fused[i] / expected[i]} > {allowed / expected[i]}"


# Examples (derandomize) and tensors (manual_seed) are the same in every run. A failure can therefore be repeated.
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    kernel_size=st.tuples(odd, st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5, 7])),
    heads=st.integers(1, 3),
    dims=st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(2, 5)),
    variant=st.sampled_from(VARIANTS),
    stride=st.sampled_from([1, 2, (1, 2, 1)]),
    form=st.sampled_from(list(FORMS)),
    one_frame_chunks=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_error_on_odd_sizes(shape, kernel_size, heads, dims, variant, stride, form, one_frame_chunks, dtype):
    torch.manual_seed(0)
    key, value, latent = dims
    latent = key if variant[0] == "V" else latent
    rsa = perturbed(
        out_channels=heads * value, num_heads=heads, key_dim=key, value_dim=value, latent_dim=latent,
        kernel_size=kernel_size, stride=stride, kernel_type=variant[0], feat_type=variant[1],
    )  # fmt: skip
    n, t, h, w = shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rsa_fused, "MAPS_PAY", FORMS[form])
        if one_frame_chunks:
            patch.setattr(rsa_fused, "CHUNK_BYTES", {"cpu": 1})
            patch.setattr(rsa_fused, "CHUNK_KERNELS", 0)
        assert_as_exact_as_the_plain_path(rsa, (n, rsa.in_channels, t, h, w), dtype, draws=4)


# bfloat16 is not tested on a CPU: there the plain path's gradient of H1 is wrong or NaN (conv3d of PyTorch 2.15).
ON = {"cpu": (torch.float32, torch.float16), "cuda": (torch.float32, torch.float16, torch.bfloat16)}


@pytest.mark.parametrize(("device", "dtype"), [(device, dtype) for device in ON for dtype in ON[device]])
@pytest.mark.parametrize(("channels", "size"), [(64, 12), (128, 7)])
@pytest.mark.parametrize("form", FORMS)
def test_error_of_the_network_s_operators(form, channels, size, device, dtype, monkeypatch):
    """The operators have the network's 8 heads and 5x7x7 kernel."""
    monkeypatch.setattr(rsa_fused, "MAPS_PAY", FORMS[form])
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
            pytest.skip("this GPU has no bfloat16")
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert_as_exact_as_the_plain_path(RSA(channels, channels), (1, channels, 4, size, size), dtype, device=device)


def test_vectors_near_zero():
    """Vectors are zero, or their squares are about as large as the epsilon of the norm."""
    rsa = perturbed(out_channels=8, num_heads=2, kernel_size=3)
    x = torch.randn(2, rsa.in_channels, 3, 4, 5)
    x[0, :, 0] = 0
    x[0, :, 1] *= 1e-3
    weight = torch.randn_like(rsa(x))
    pairs = zip(*(results(rsa, backend, torch.float32, x, weight) for backend in ("reference", "fused")), strict=True)
    for plain, fused in pairs:
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())


def test_narrow_maps_are_by_maps():
    settings = {f"stage {i}": (2, 8, size, size, 10 * d) for i, (d, size) in enumerate([(8, 56), (32, 14), (64, 7)])}
    forms = {}
    for name, shape in settings.items():
        d = shape[-1] // 10
        rsa = RSA(8 * d, 8 * d)
        projected = torch.empty(shape, device="meta")
        forms[name] = rsa_fused._Sizes(projected, rsa.H2.weight, rsa.H1.weight, rsa.G.weight, 8).by_maps
    assert forms == {"stage 0": False, "stage 1": False, "stage 2": True}


@pytest.mark.parametrize(("kernel_type", "feat_type"), VARIANTS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients(kernel_type, feat_type, form, monkeypatch):
    monkeypatch.setattr(rsa_fused, "MAPS_PAY", FORMS[form])
    monkeypatch.setattr(rsa_fused, "CHUNK_BYTES", {"cpu": 1})
    monkeypatch.setattr(rsa_fused, "CHUNK_KERNELS", 0)
    rsa = RSA(4, 4, 2, kernel_size=3, kernel_type=kernel_type, feat_type=feat_type, backend="fused").double()
    x = torch.randn(1, 4, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: rsa(x), (x, *rsa.parameters()))


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_gradients_are_the_same_each_time(backend):
    torch.manual_seed(0)
    rsa, x = RSA(64, 64, backend=backend), torch.randn(2, 64, 4, 16, 16)
    weight = torch.randn_like(rsa(x))
    first, second = (results(rsa, backend, torch.float32, x, weight) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("positions", "expected"), [(1, 1), (24, 1), (40, 2), (80, 4), (161, 8)])
def test_chunks_are_adjacent_in_memory(positions, expected, monkeypatch):
    """A chunk is frames of one clip, or whole clips. Together, the chunks are all positions."""
    rsa, projected = RSA(8, 8, 2, kernel_size=3), torch.arange(3 * 4 * 4 * 5).view(3, 4, 4, 5, 1)
    sizes = rsa_fused._Sizes(projected.expand(-1, -1, -1, -1, 16), rsa.H2.weight, rsa.H1.weight, rsa.G.weight, 2)
    monkeypatch.setattr(sizes, "chunk_positions", positions)
    found = [projected[chunk.clips, chunk.frames] for chunk in sizes.chunks()]
    assert all((part.flatten().diff() == 1).all() for part in found)
    assert torch.equal(torch.cat([part.flatten() for part in found]), projected.flatten())
    assert found[0].shape[:2].numel() == expected


def test_no_clips():
    rsa = RSA(8, 8, 2, kernel_size=3, backend="fused")
    y = rsa(torch.zeros(0, 8, 2, 4, 4))
    y.sum().backward()
    assert y.shape == (0, 8, 2, 4, 4) and not any(p.grad.any() for p in rsa.parameters())


def test_frozen_parameters_get_no_gradient():
    rsa = RSA(8, 8, 2, kernel_size=3, backend="fused")
    rsa.H1.weight.requires_grad_(False)
    x = torch.randn(1, 8, 2, 4, 4)
    rsa(x).sum().backward()
    expected = rsa.G.weight.grad.clone()
    assert rsa.H1.weight.grad is None
    rsa.zero_grad()
    rsa.backend = "reference"
    rsa(x).sum().backward()
    torch.testing.assert_close(expected, rsa.G.weight.grad)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_layouts(memory_format):
    rsa, x = RSA(8, 8, 2, kernel_size=3, backend="fused"), torch.randn(2, 8, 3, 6, 5)
    expected = rsa(x)
    strided = torch.randn(2, 8, 3, 12, 5)
    strided[:, :, :, ::2] = x
    for other in (x.to(memory_format=memory_format), x.mT.contiguous().mT, strided[:, :, :, ::2]):
        torch.testing.assert_close(rsa(other), expected)
    frames = expected.transpose(1, 2).flatten(0, 1)
    assert frames.is_contiguous(memory_format=torch.channels_last)  # the next 2-D layer needs no copy


def operands(rsa: RSA) -> tuple:
    channels = rsa.projection.out_channels
    projected = torch.randn(2, 3, 4, 5, channels, requires_grad=True)
    weights = [getattr(rsa, name, None) for name in ("H2", "H1", "P1", "G", "I")]
    return projected, *(w.weight if isinstance(w, torch.nn.Module) else w for w in weights), rsa.num_heads


@pytest.mark.parametrize("variant", [("VplusR", "VplusR"), ("R", "V"), ("V", "R")])
def test_operator_is_well_formed(variant):
    rsa = RSA(8, 8, 2, kernel_size=3, kernel_type=variant[0], feat_type=variant[1])
    torch.library.opcheck(torch.ops.rsa.fused.default, operands(rsa))


def test_compile_export_autocast_and_checkpoint():
    rsa, x = RSA(8, 8, 2, kernel_size=3, backend="fused"), torch.randn(1, 8, 3, 5, 4)
    expected = rsa(x)
    expected.square().sum().backward()
    gradient = rsa.H1.weight.grad.clone()
    compiled = torch.compile(rsa, fullgraph=True, backend="aot_eager")
    for run in (compiled, partial(checkpoint, rsa, use_reentrant=False)):
        rsa.zero_grad()
        y = run(x)
        torch.testing.assert_close(y, expected)
        y.square().sum().backward()
        torch.testing.assert_close(rsa.H1.weight.grad, gradient)
    program = torch.export.export(rsa, (x,))
    torch.testing.assert_close(program.module()(x), expected)
    rsa.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = rsa(x)
    y.square().sum().backward()
    assert y.dtype == torch.bfloat16 and rsa.H1.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.05)
    torch.testing.assert_close(rsa.H1.weight.grad, gradient, rtol=0.2, atol=0.05 * gradient.abs().max().item())


@pytest.mark.parametrize("size", [2, 24])
def test_gradients_have_the_memory_layout_that_the_compiler_is_told(size):
    """Small and large maps use different forms of the operator, which store weights in different layouts."""
    rsa = RSA(16, 16, 2, kernel_size=(3, 7, 7))
    _, *weights, heads = operands(rsa)
    projected = torch.randn(1, 2, size, size, rsa.projection.out_channels)
    gradient = torch.randn(1, 2, size, size, 16)
    for found in torch.ops.rsa.fused_backward(gradient, projected, *weights, heads):
        assert found.is_contiguous()


def test_only_inputs_are_kept():
    """The backward pass saves no D x D numbers per position."""
    rsa, kept = RSA(8, 8, 2, kernel_size=3, backend="fused"), []
    x = torch.randn(2, 8, 3, 4, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rsa(x)
    weights = sum(p.numel() for p in rsa.parameters())
    assert sum(t.numel() for t in kept) <= x.numel() + 2 * weights + 2 * 3 * 4 * 5 * rsa.projection.out_channels


def test_choice(monkeypatch):
    monkeypatch.delenv("RSA_BACKEND", raising=False)
    assert rsa_backend_reason(device="cpu") == "fused (backend='auto')"
    assert rsa_backend_reason("reference", "cpu") == "reference (backend='reference')"
    assert rsa_backend_reason("triton", "cpu").startswith("fused (backend='triton', but triton cannot be used: ")
    monkeypatch.setenv("RSA_BACKEND", "reference")
    assert rsa_backend_reason(device="cpu") == "reference (RSA_BACKEND=reference)"
    assert rsa_backend_reason("fused", "cpu") == "fused (backend='fused')"  # the argument overrides the variable
    monkeypatch.setenv("RSA_BACKEND", "cuda")
    with pytest.raises(ValueError, match="RSA_BACKEND=cuda must be auto, reference, fused or triton"):
        RSA(8, 8)
    with pytest.raises(ValueError, match="backend='fast' must be"):
        RSA(8, 8, backend="fast")


def test_the_reason_on_a_gpu_says_why_triton_is_not_chosen(monkeypatch):
    monkeypatch.delenv("RSA_BACKEND", raising=False)
    always = Backend(ops.rsa.BACKENDS["triton"].compute, lambda *_: None)
    monkeypatch.setitem(ops.rsa.BACKENDS, "triton", always)  # as on a machine with triton
    expected = (
        "fused (backend='auto'; triton is not chosen because this version of it has not run on a GPU: "
        "check it with ./scripts/check_gpu.sh, then set RSA_BACKEND=triton)"
    )
    assert rsa_backend_reason(device="cuda") == expected
    assert RSA(8, 8).describe_backend(torch.device("cuda")) == f"RSA: {expected}"
    assert rsa_backend_reason(device="cpu") == "fused (backend='auto')"
    assert rsa_backend_reason("fused", "cuda") == "fused (backend='fused')"
    monkeypatch.setenv("RSA_BACKEND", "triton")
    assert rsa_backend_reason(device="cuda") == "triton (RSA_BACKEND=triton)"
    monkeypatch.delenv("RSA_BACKEND")
    never = Backend(always.compute, lambda *_: "triton is not installed")
    monkeypatch.setitem(ops.rsa.BACKENDS, "triton", never)
    assert rsa_backend_reason(device="cuda") == "fused (backend='auto')"


def test_the_environment_decides(monkeypatch):
    rsa, x = RSA(8, 8, 2, kernel_size=3), torch.randn(1, 8, 2, 3, 3)
    taken, fused = [], ops.rsa.BACKENDS["fused"]
    monkeypatch.setitem(
        ops.rsa.BACKENDS, "fused", Backend(lambda *a: taken.append("fused") or fused.compute(*a), fused.why_not)
    )
    rsa(x)
    monkeypatch.setenv("RSA_BACKEND", "reference")
    rsa(x)
    assert taken == ["fused"]


def test_what_cannot_be_used_is_told():
    rsa = RSA(8, 8, 2, kernel_size=3, backend="triton")
    with pytest.warns(UserWarning, match="RSA runs as fused: backend='triton', but triton cannot be used: "):
        rsa(torch.randn(1, 8, 2, 3, 3))


def test_rsa_py_alone_is_the_operator(tmp_path):
    """A user may copy only this file."""
    (tmp_path / "rsa.py").write_text(Path(ops.rsa.__file__).read_text())
    code = "import torch, rsa; print(rsa.RSA(8, 8)(torch.ones(1, 8, 1, 2, 2)).shape, rsa.rsa_backend_reason())"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RSA_BACKEND")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "torch.Size([1, 8, 1, 2, 2]) reference (backend='auto')" in result.stdout, result
