"""Compiles RSA's Triton kernels for GPUs, without one: Triton brings NVIDIA's assembler. Nothing runs here.

The interpreter of ``test_rsa_triton.py`` accepts more than the compiler. It knows no limits of registers and of shared
memory.
"""

import re
import subprocess

import pytest
import torch

from ops import RSA, rsa_triton

STAGES = {"res2": (8, 56), "res5": (64, 7)}  # channels of a key, and size of the map, as in RSANet-R50
NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
SHARED = 64 << 10  # bytes; two programs then fit on each multiprocessor of a GPU since Ampere


def launches(stage: str, dtype: torch.dtype, monkeypatch) -> dict:
    """The launches of a forward and backward pass, without those that differ only in the number of programs."""
    found = {}

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return self.note

        def note(self, *arguments, **constants):
            key = {name: value for name, value in constants.items() if name not in ("BR", "BP")}
            found[f"{self.kernel.__name__} {key}"] = self.kernel, arguments, constants

    for name in ("convolve", "weight_gradient", "heads", "heads_backward"):
        monkeypatch.setattr(rsa_triton.kernels, name, Recorder(getattr(rsa_triton.kernels, name)))
    monkeypatch.setattr(rsa_triton, "why_not", lambda *_: None)
    size, width = STAGES[stage]
    rsa = RSA(8 * size, 8 * size)
    projected = torch.randn(4, 8, width, width, 10 * size).to(dtype).requires_grad_()
    weights = rsa.H2.weight, rsa.H1.weight, rsa.P1, rsa.G.weight, rsa.I
    y = rsa_triton.relational_self_attention(projected, *weights, 8)
    y.backward(torch.ones_like(y))
    return found


def compiled(kernel, arguments, constants, capability: int):
    """Compile a kernel as its launch would."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    options = {name: constants[name] for name in ("num_warps", "num_stages") if name in constants}
    types, values, divisible = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        x = arguments[i] if i < len(arguments) else constants[name]
        types[name] = NAMES[x.dtype] if isinstance(x, torch.Tensor) else "i32"
        if i >= len(arguments) or (types[name] == "i32" and x == 1):
            types[name], values[(i,)] = "constexpr", x
        elif types[name] != "i32" or x % 16 == 0:
            divisible[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=types, constexprs=values, attrs=divisible)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize(
    ("stage", "dtype", "capability"),
    [("res2", torch.bfloat16, 90), ("res5", torch.bfloat16, 80), ("res2", torch.float32, 80)],
)
def test_kernels_compile_for_gpus(stage, dtype, capability, tmp_path, monkeypatch):
    """No kernel spills registers, products in bfloat16 use tensor cores, and runs of inputs are loaded as vectors."""
    knobs = pytest.importorskip("triton").knobs
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    found = launches(stage, dtype, monkeypatch)
    assert len(found) == 8, list(found)
    for kernel, arguments, constants in found.values():
        binary = compiled(kernel, arguments, constants, capability)
        file = tmp_path / "kernel.cubin"
        file.write_bytes(binary.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        name = f"{kernel.__name__} {constants}"
        assert "STACK:0" in usage and "LOCAL:0" in usage, f"{name} spills: {usage}"
        assert binary.metadata.shared <= SHARED, name
        code = binary.asm["ptx"]
        if dtype == torch.bfloat16 and "PRECISION" in constants:
            assert re.search(r"wgmma\.mma_async|mma\.sync", code), f"{name} uses no tensor cores"
        if dtype == torch.bfloat16 and constants.get("PADDED") is False:
            assert "cp.async.cg" in code and "ld.global" not in code, f"{name} loads single numbers"
