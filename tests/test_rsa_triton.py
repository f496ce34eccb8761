"""Compares RSA's Triton kernels with float64: compiled on a GPU, otherwise by Triton's interpreter in another process.

The interpreter must be chosen before triton is imported. Without a GPU, a second pytest therefore runs this file with
TRITON_INTERPRET=1.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ops import RSA, rsa_triton
from ops.rsa_triton import relational_self_attention, why_not

ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RUNS = why_not(DEVICE, torch.float32, "VplusR", "VplusR") is None
needs_kernels = pytest.mark.skipif(not RUNS, reason="the kernels run in test_by_the_interpreter")

# Errors below this many machine epsilons of the type do not count, because a sum of few products is exact only by luck.
FLOOR = 1
# name: (N, T, H, W), heads, key, value, latent, kernel
CASES = {
    "one_pixel": ((1, 1, 1, 1), 1, 2, 3, 1, (1, 1, 1)),
    "one_frame": ((2, 1, 3, 5), 1, 3, 2, 4, (3, 1, 3)),
    "three_heads": ((1, 3, 4, 3), 3, 2, 3, 5, (3, 1, 3)),
    "flat_kernel": ((2, 2, 3, 1), 2, 2, 3, 2, (1, 3, 1)),
    "network_kernel": ((1, 2, 3, 4), 2, 2, 2, 1, (5, 7, 7)),  # the kernel is larger than the map in each direction
    "wide": ((1, 2, 6, 17), 2, 1, 2, 18, (1, 3, 1)),  # several blocks in a row and column, the last of them partial
}
LARGE = ((2, 8, 28, 28), 8, 16, 16, 16, (5, 7, 7))  # only for GPUs


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter runs programs one after the other. With fewer programs, each of them has larger tiles."""
    if rsa_triton.INTERPRETED:
        monkeypatch.setattr(rsa_triton, "PROGRAMS", 4)


def plain(projected, H2, H1, P1, G, I, num_heads):  # noqa: E741
    """The definition in plain torch with explicit neighbourhoods, in the type of the arguments."""
    key, value, latent = P1.shape[1], I.shape[1], H2.shape[0]
    q, k, v = projected.split([num_heads * key, key, value], dim=-1)
    q, k, v = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q.unflatten(-1, (num_heads, key)), k, v))

    def around(x):  # (N, T, H, W, C) -> (N, T, H, W, C, M)
        kernel = H2.shape[2:]
        x = F.pad(x, (0, 0, *(k // 2 for k in reversed(kernel) for _ in range(2))))
        for dim, size in zip((1, 2, 3), kernel, strict=True):
            x = x.unfold(dim, size, 1)
        return x.flatten(-3)

    k, v = around(k), around(v)
    relation = torch.einsum("nthwkm,kdm->nthwkd", k, H1.flatten(1).unflatten(0, (key, latent)))
    code = torch.einsum("nthwlk,nthwkd->nthwld", q, relation + P1)
    context = v @ H2.flatten(1).T  # (N, T, H, W, V, D)
    mixing = v @ G.flatten(1).T + I[0]  # (N, T, H, W, V, V)
    return (mixing.transpose(-1, -2) @ (context @ code.transpose(-1, -2))).flatten(-2)


def arguments(case, dtype=torch.float32, parameters=None):
    """((projected, H2, H1, P1, G, I), heads) of an RSA whose tensors hold neither zeros nor ones."""
    (n, t, h, w), heads, key, value, latent, kernel = CASES.get(case, LARGE)
    torch.manual_seed(0)
    rsa = RSA(6, 6, heads, key, value, latent, kernel)
    with torch.no_grad():
        rsa.P1.normal_()
        rsa.I.add_(0.2 * torch.randn_like(rsa.I))
        projected = F.linear(torch.randn(n, t, h, w, 6), rsa.projection.weight.flatten(1))
    tensors = [projected, rsa.H2.weight, rsa.H1.weight, rsa.P1, rsa.G.weight, rsa.I]
    types = [dtype] + [parameters or dtype] * 5
    return [x.detach().to(DEVICE, d).requires_grad_() for x, d in zip(tensors, types, strict=True)], heads


def results(path, tensors, heads):
    """The output of a path and all gradients, for a fixed gradient of the output."""
    y = path(*tensors, heads)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    return [y.detach(), *torch.autograd.grad(y, tensors, gradient.to(y))]


def error(x, exact):
    return ((x.double() - exact).norm() / exact.norm()).item()


def assert_accurate(found, tensors, heads):
    """The error against float64 is at most 2 (output) or 3 (gradients) times the error of the plain path."""
    same = [x.detach().to(found[0].dtype).requires_grad_() for x in tensors]  # as the kernels get them
    exact = results(plain, [x.detach().double().requires_grad_() for x in same], heads)
    usual = results(plain, same, heads)
    for name, x, e, u in zip(("y", "projected", "H2", "H1", "P1", "G", "I"), found, exact, usual, strict=True):
        limit = (2 if name == "y" else 3) * max(error(u, e), FLOOR * torch.finfo(u.dtype).eps)
        assert x.shape == e.shape and error(x, e) <= limit, f"{name}: error {error(x, e):.2g}, limit {limit:.2g}"


@pytest.mark.skipif(RUNS, reason="the checks below run here")
def test_by_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["-k", "not by_the_interpreter and not without_triton", __file__]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout


@needs_kernels
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in CASES] + [("flat_kernel", dtype) for dtype in rsa_triton.DTYPES[1:]],
)
def test_is_as_accurate_as_the_plain_path(case, dtype):
    tensors, heads = arguments(case, dtype)
    found = results(relational_self_attention, tensors, heads)
    assert all(x.dtype == dtype for x in found)
    assert_accurate(found, tensors, heads)


@needs_kernels
def test_chunks_shares_and_parts(monkeypatch):
    """A clip is a chunk, a program has several tiles, and the outputs of a block need several products."""
    monkeypatch.setattr(rsa_triton, "CHUNK_BYTES", 1)
    monkeypatch.setattr(rsa_triton, "OUTPUTS", 16)
    monkeypatch.setattr(rsa_triton, "PROGRAMS", 1)
    monkeypatch.setitem(CASES, "clips", ((2, 1, 5, 9), 2, 1, 2, 17, (1, 1, 3)))
    tensors, heads = arguments("clips")
    assert_accurate(results(relational_self_attention, tensors, heads), tensors, heads)


@needs_kernels
def test_every_run_gives_the_same_bits():
    tensors, heads = arguments("large" if DEVICE.type == "cuda" else "flat_kernel", torch.bfloat16)
    first, second = (results(relational_self_attention, tensors, heads) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_kernel_is_atomic():
    """The order of atomic additions would change the last digits from run to run."""
    source = Path(rsa_triton.kernels.__file__).read_text()
    assert "tl.dot" in source and not re.search(r"\batomic_\w+", source)


@needs_kernels
def test_parameters_stay_in_float32():
    tensors, heads = arguments("one_pixel", torch.bfloat16, parameters=torch.float32)
    found = results(relational_self_attention, tensors, heads)
    assert [x.dtype for x in found] == [torch.bfloat16] * 2 + [torch.float32] * 5
    assert_accurate(found, tensors, heads)


@needs_kernels
def test_any_strides():
    (projected, *parameters), heads = arguments("flat_kernel")
    expected = results(relational_self_attention, [projected, *parameters], heads)
    order = projected.detach().permute(4, 2, 0, 3, 1).contiguous().permute(2, 4, 1, 3, 0)
    apart = F.pad(projected.detach(), (1, 2))[..., 1:-2]
    for other in (order, apart):
        assert not other.is_contiguous()
        found = results(relational_self_attention, [other.requires_grad_(), *parameters], heads)
        for x, e in zip(found, expected, strict=True):
            torch.testing.assert_close(x, e, rtol=1e-5, atol=1e-6)
    gradient = torch.randn_like(expected[0]).transpose(1, 2).contiguous().transpose(1, 2)
    y = relational_self_attention(projected, *parameters, heads)
    pairs = (torch.autograd.grad(y, parameters, g, retain_graph=True) for g in (gradient, gradient.contiguous()))
    torch.testing.assert_close(*pairs)


@needs_kernels
def test_is_what_rsa_computes(monkeypatch):
    """The module computes the same from the same projection. Channels and heads therefore have the same order."""
    monkeypatch.setattr(rsa_triton, "PROGRAMS", 512)  # as in use: tiles are small
    torch.manual_seed(0)
    rsa = RSA(6, 4, 2, kernel_size=3).to(DEVICE)
    x = torch.randn(1, 6, 2, 4, 3, device=DEVICE)
    with torch.no_grad():
        projected = F.linear(x.movedim(1, -1), rsa.projection.weight.flatten(1))
        y = relational_self_attention(projected, rsa.H2.weight, rsa.H1.weight, rsa.P1, rsa.G.weight, rsa.I, 2)
        torch.testing.assert_close(y.movedim(-1, 1), rsa(x), rtol=1e-2, atol=1e-3)  # its convolutions may be in tf32


@needs_kernels
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_operators_are_registered_correctly(dtype):
    tensors, heads = arguments("flat_kernel", dtype, parameters=torch.float32)
    torch.library.opcheck(torch.ops.rsa.triton.default, (*tensors, heads), atol=1e-4, rtol=1e-2)
    with torch.no_grad():
        y = torch.ops.rsa.triton(*tensors, heads)
        plain_tensors = [x.detach() for x in tensors]
    torch.library.opcheck(torch.ops.rsa.triton_backward.default, (y, *plain_tensors, heads))


@needs_kernels
def test_compiles_and_exports_whole():
    tensors, heads = arguments("flat_kernel")
    expected = results(relational_self_attention, tensors, heads)
    compiled = torch.compile(relational_self_attention, fullgraph=True, backend="aot_eager")
    for x, e in zip(results(compiled, tensors, heads), expected, strict=True):
        torch.testing.assert_close(x, e, rtol=1e-5, atol=1e-6)

    tensors, heads = arguments("flat_kernel")  # it has two clips, because a dimension of size one cannot vary

    class Whole(torch.nn.Module):
        def forward(self, *tensors):
            return relational_self_attention(*tensors, heads)

    tensors = tuple(x.detach() for x in tensors)
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(Whole(), tensors, dynamic_shapes=(({0: batch}, *({},) * 5),), strict=False)
    more = torch.cat([tensors[0], -tensors[0][:1]]), *tensors[1:]
    torch.testing.assert_close(program.module()(*more), relational_self_attention(*more, heads))


@needs_kernels
def test_no_clips():
    (projected, *parameters), heads = arguments("flat_kernel")
    found = results(relational_self_attention, [projected.detach()[:0].requires_grad_(), *parameters], heads)
    assert found[0].shape[0] == found[1].shape[0] == 0
    assert not any(g.any() for g in found[2:])


@needs_kernels
def test_a_clip_too_large_for_the_offsets_is_told():
    (projected, *parameters), heads = arguments("one_pixel")
    large = projected.detach().expand(1, 1024, 1024, 1024, -1)  # takes no memory
    with pytest.raises(ValueError, match="a clip with .* numbers is too large for the kernels"):
        relational_self_attention(large, *parameters, heads)


def test_says_why_not():
    cpu, both = torch.device("cpu"), "VplusR"
    assert why_not(cpu, torch.float32, "V", both) == "kernel_type 'V' has no kernel"
    assert why_not(cpu, torch.float32, both, "R") == "feat_type 'R' has no kernel"
    assert why_not(cpu, torch.float64, both, both) == "float64 has no kernel"
    if not rsa_triton.INTERPRETED:
        assert why_not(cpu, torch.float32, both, both) in (
            "no CUDA device: the input is on cpu",
            "triton is not installed",
        )
        with pytest.raises(ValueError, match="no Triton kernel of RSA for torch.float32 on cpu: "):
            relational_self_attention(*(x.detach().cpu() for x in arguments("one_pixel")[0]), 1)


def test_imports_without_triton():
    code = (
        "import sys, torch; sys.modules['triton'] = None; from ops.rsa_triton import why_not;"
        "print(why_not(torch.device('cuda'), torch.float32, 'VplusR', 'VplusR'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "triton is not installed", done.stderr
