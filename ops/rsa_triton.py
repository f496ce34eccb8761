"""RSA for GPUs: ``ops.rsa`` in Triton kernels, without atomic operations.

At each position, the relation X^K * H1 is a matrix of K x D numbers, the context H2^T X^V has V x D, and the mixing
X^V * G has V x V. Both passes process a few clips at a time, and only the matrices of these clips are in memory:

- Forward: two convolutions write the matrices (H2 and G share one, because they have the same input), and one kernel
  forms the products over the heads.
- Backward: it saves the inputs only and computes the matrices again. One kernel computes the gradients of the queries
  and of the matrices. The gradient of keys or values is a convolution of the gradient of the matrices with the flipped
  kernel. The gradients of the weights are matrix products, summed over programs in a fixed order.

Every sum has a fixed order. Therefore all results are the same in every run on one machine. The kernels are in
``rsa_triton_kernels``, which must be copied together with this file.

Letters: P = N x T x H x W positions; L heads; K key, V value and D latent channels; C channels of keys or values; a
block is BH x BW neighbouring positions (rows x columns) that a product computes together.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import rsa_triton_kernels as kernels
from .rsa_triton_kernels import INTERPRETED, triton

EPSILON = 1e-6
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK_BYTES = 40 << 20  # size of a chunk's matrices and their gradients; a chunk has at least one clip
OUTPUTS = 128  # of a block, at most
BLOCK = (4, 8)  # the largest block: rows, columns
PROGRAMS = 512  # enough for any GPU: with fewer, each gets less work; with more, gradients of weights have more parts


def why_not(device: torch.device, dtype: torch.dtype, kernel_type: str, feat_type: str) -> str | None:
    """The reason why ``relational_self_attention`` cannot be used for such an input; ``None`` if it can."""
    for name, value in (("kernel_type", kernel_type), ("feat_type", feat_type)):
        if value != "VplusR":
            return f"{name} {value!r} has no kernel"
    if dtype not in DTYPES:
        return f"{str(dtype).removeprefix('torch.')} has no kernel"
    if triton is None:
        return "triton is not installed"
    if device.type != "cuda" and not INTERPRETED:
        return f"no CUDA device: the input is on {device.type}"
    return None


def relational_self_attention(
    projected: Tensor,
    H2: Tensor,
    H1: Tensor,
    P1: Tensor,
    G: Tensor,
    I: Tensor,
    num_heads: int,
) -> Tensor:
    """The output of RSA from the queries, keys and values of every position, before they are normalised.

    It supports only RSANet's variant, ``kernel_type=feat_type="VplusR"`` (paper "Relational Self-Attention", NeurIPS
    2021, Fig. 2, with H = H1 H2^T and P = H2 P1^T as in ``ops.rsa``).

    Args: ``projected`` (N, T, H, W, L*K + K + V) in float32, bfloat16 or float16, of any strides;
        ``H2`` (D, 1, kT, kH, kW); ``H1`` (K*D, 1, kT, kH, kW); ``P1`` (1, K, D); ``G`` (V, 1, kT, kH, kW);
        ``I`` (1, V, V). Parameters of any type are converted to the type of ``projected``; sums are in float32.

    Returns (N, T, H, W, V*L), channel v*L + l for head l, in the type of ``projected``. Gradients are of first order,
        each in the type of its input.

    Errors: ``ValueError`` if ``why_not`` gives a reason for the input, or if a clip is too large for 32-bit offsets;
        Triton's own error for bfloat16 on a GPU with compute capability below 8.0.
    """
    return torch.ops.rsa.triton(projected, H2, H1, P1, G, I, num_heads)


@torch.library.custom_op("rsa::triton", mutates_args=())
def _triton(
    projected: Tensor,
    H2: Tensor,
    H1: Tensor,
    P1: Tensor,
    G: Tensor,
    I: Tensor,
    num_heads: int,
) -> Tensor:
    call = _Call(projected, H2, H1, P1, G, I, num_heads)
    y = projected.new_empty(*projected.shape[:4], call.V * call.L)
    for clips in call.chunks(1):
        call.forward(projected[clips].contiguous(), y[clips])
    return y


@_triton.register_fake
def _(projected, H2, H1, P1, G, I, num_heads):
    V = projected.shape[4] - (num_heads + 1) * (H1.shape[0] // H2.shape[0])
    return projected.new_empty(*projected.shape[:4], V * num_heads)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, gradient):
    return *torch.ops.rsa.triton_backward(gradient, *ctx.saved_tensors, ctx.num_heads), None


_triton.register_autograd(_gradients, setup_context=_setup_context)


@torch.library.custom_op("rsa::triton_backward", mutates_args=())
def _triton_backward(
    gradient: Tensor,
    projected: Tensor,
    H2: Tensor,
    H1: Tensor,
    P1: Tensor,
    G: Tensor,
    I: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``projected``, H2, H1, P1, G and I."""
    call = _Call(projected, H2, H1, P1, G, I, num_heads)
    result = torch.empty_like(projected, memory_format=torch.contiguous_format)
    sums = [torch.zeros_like(x, dtype=torch.float32) for x in (call.h1.weight, call.h2_g.weight, call.p1, call.i)]
    for clips in call.chunks(2):
        g_y = gradient[clips].to(projected.dtype).contiguous()
        for total, term in zip(sums, call.backward(projected[clips].contiguous(), g_y, result[clips]), strict=True):
            total += term
    g_h1, g_h2_g, g_p1, g_i = sums
    g_h2, g_g = g_h2_g[0].split([call.D, call.V])
    pairs = zip((g_h2, g_h1, g_p1, g_g, g_i), (H2, H1, P1, G, I), strict=True)
    return result, *(x.new_empty(x.shape).copy_(g.reshape(x.shape)) for g, x in pairs)


@_triton_backward.register_fake
def _(gradient, projected, H2, H1, P1, G, I, num_heads):
    result = torch.empty_like(projected, memory_format=torch.contiguous_format)
    return result, *(x.new_empty(x.shape) for x in (H2, H1, P1, G, I))


class _Call:
    """The sizes of a call, its parameters as the kernels read them, and its chunks."""

    def __init__(self, projected, H2, H1, P1, G, I, num_heads):
        reason = why_not(projected.device, projected.dtype, "VplusR", "VplusR")
        if reason:
            raise ValueError(f"no Triton kernel of RSA for {projected.dtype} on {projected.device}: {reason}")
        self.shape, self.D, self.L = projected.shape, H2.shape[0], num_heads
        self.K = H1.shape[0] // self.D
        self.V = projected.shape[4] - (self.L + 1) * self.K
        self.clip_bytes = prod(self.shape[1:4]) * (self.K * self.D + self.V * (self.D + self.V)) * projected.itemsize
        most = prod(self.shape[1:4]) * max(self.shape[4], self.D + self.V, self.V * self.L)  # numbers
        if most >= 2**31:
            raise ValueError(f"a clip with {most} numbers is too large for the kernels (2**31); use smaller frames")
        dtype, precision = projected.dtype, _precision(projected.dtype)
        self.h1 = _Convolution(H1.unflatten(0, (self.K, self.D)).to(dtype), precision)
        self.h2_g = _Convolution(torch.cat([H2.to(dtype), G.to(dtype)]).unsqueeze(0), precision)
        self.p1, self.i = P1[0].to(dtype).contiguous(), I[0].to(dtype).contiguous()

    def chunks(self, copies: int):
        """Slices of clips whose matrices, ``copies`` times, take at most about CHUNK_BYTES."""
        clips = max(1, CHUNK_BYTES // max(1, copies * self.clip_bytes))
        if prod(self.shape):
            yield from (slice(first, first + clips) for first in range(0, self.shape[0], clips))

    def forward(self, projected: Tensor, y: Tensor) -> None:
        """Write the output of a chunk."""
        k, v = (_unit(x)[0] for x in self.keys_and_values(projected))
        matrices = self.h1.matrices(self.h1.padded(k)), self.h2_g.matrices(self.h2_g.padded(v))
        self.by_tile(kernels.heads, projected, *matrices, self.p1, self.i, y)

    def backward(self, projected: Tensor, g_y: Tensor, result: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Write the gradient of a chunk's ``projected`` to ``result``; returns its part of those of the parameters.

        They are the gradients of H1, of H2 and G together, of P1 and of I.
        """
        k, v = (_unit(x) for x in self.keys_and_values(projected))
        keys, values = self.h1.padded(k[0]), self.h2_g.padded(v[0])
        relation, context = self.h1.matrices(keys), self.h2_g.matrices(values)
        g_relation, g_context = torch.empty_like(relation), torch.empty_like(context)
        tensors = relation, context, self.p1, self.i, g_y, result, g_relation, g_context
        self.by_tile(kernels.heads_backward, projected, *tensors)
        del relation, context, tensors  # frees their memory before the next step needs as much
        found = self.h1.input_gradient(g_relation), self.h2_g.input_gradient(g_context)
        for to, g, (x, scale) in zip(self.keys_and_values(result), found, (k, v), strict=True):
            g, x = g.movedim(0, -1), x.float()
            to.copy_((g - x * (x * g).sum(-1, keepdim=True)) * scale)
        weights = self.h1.weight_gradient(keys, g_relation), self.h2_g.weight_gradient(values, g_context)
        biases = (x.flatten(1, 4).sum(1, dtype=torch.float32) for x in (g_relation, g_context[..., self.D :]))
        return *weights, *biases

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, H, W, E) -> keys (N, T, H, W, K), values (N, T, H, W, V)."""
        return x.split([self.L * self.K, self.K, self.V], dim=-1)[1:]

    def by_tile(self, kernel, projected: Tensor, *tensors: Tensor) -> None:
        """Start ``heads`` or ``heads_backward``, one program for every BP positions."""
        P, E = projected.shape[:4].numel(), projected.shape[4]
        LP, BD, BV = (triton.next_power_of_2(x) for x in (self.L, self.D, self.V))
        BP = _tile(max(1, 2048 // (LP * max(BD, BV))), 1, lambda size: triton.cdiv(P, size))
        with torch.cuda.device_of(projected):
            kernel[(triton.cdiv(P, BP),)](
                projected, *tensors, P, E, self.K, self.V, self.D, self.L, LP=LP, BP=BP, BD=BD, BV=BV, EPS=EPSILON,
                num_warps=4,
            )  # fmt: skip


class _Planes(NamedTuple):
    """Keys or values as a convolution reads them: (C, N, T + .., H + .., W + ..), with zeros around each clip."""

    planes: Tensor
    shape: torch.Size  # (N, T, H, W)


class _Convolution:
    """A zero-padded convolution of C channels, each with I inputs and O outputs at a position.

    ``weight`` is (groups, O, I, KT, KH, KW). If ``groups`` is 1, the channels share it; otherwise each has its own.
    ``rows`` is the height of a block.
    """

    def __init__(self, weight: Tensor, precision: str, rows: int = 1):
        self.weight, self.precision, self.BH = weight, precision, rows
        self.groups, self.O, self.I, *self.kernel = weight.shape
        self.BW = max(1, min(BLOCK[1], OUTPUTS // self.O))
        self.run = (self.BW + self.kernel[2] - 1) * self.I
        self.columns = self.BH * self.BW * self.O  # of the banded matrix
        self.BN = min(OUTPUTS, _block(self.columns))
        # Length of the sums of one product, and warps. Without tensor cores (float32), a thread holds its share of both
        # factors in registers. Therefore the factors are smaller and more threads share them.
        self.short, self.warps = (64, 4) if weight.itemsize == 2 else (16, 8)
        # The kernel with zeros around it, (groups, KT, KH + .., KW + .., I, O). Rows of the banded matrix are in it.
        around = [size - 1 for size in (self.BW, self.BW, rows, rows)]
        self.windows = F.pad(weight.permute(0, 3, 4, 5, 2, 1), (0, 0, 0, 0, *around)).contiguous()

    def padded(self, x: Tensor) -> "_Planes":
        """(N, T, H, W, C) -> one plane for each channel, with zeros around each clip and space for whole blocks."""
        sizes = [size + k - 1 for size, k in zip(x.shape[1:4], self.kernel, strict=True)]
        sizes[2] += -x.shape[3] % self.BW
        planes = x.new_zeros(x.shape[4], x.shape[0], *sizes)
        inner = (slice(k // 2, k // 2 + size) for size, k in zip(x.shape[1:4], self.kernel, strict=True))
        planes[(..., *inner)] = x.movedim(-1, 0)
        return _Planes(planes, x.shape[:4])

    def matrices(self, x: "_Planes") -> Tensor:
        """The outputs (C, N, T, H, W, O)."""
        return self._start(x.planes, x.shape, x.planes.dtype)

    def input_gradient(self, g_y: Tensor) -> Tensor:
        """The gradient of the inputs (C, N, T, H, W), in float32, from the gradient of the outputs."""
        turned = _Convolution(self.weight.flip(3, 4, 5).transpose(1, 2), self.precision, BLOCK[0])
        return turned._start(g_y, g_y.shape[1:5], torch.float32, padded=False).squeeze(-1)

    def _start(self, x: Tensor, shape: torch.Size, dtype: torch.dtype, padded: bool = True) -> Tensor:
        channels, (n, *sizes) = x.shape[0], shape
        y = x.new_empty(channels, *shape, self.O, dtype=dtype)
        blocks = n * sizes[0] * triton.cdiv(sizes[1], self.BH) * triton.cdiv(sizes[2], self.BW)
        parts = triton.cdiv(self.columns, self.BN)
        BR = _tile(64, 16, lambda size: triton.cdiv(blocks, size) * channels * parts)
        group = self.windows[0].numel() if self.groups > 1 else 0
        with torch.cuda.device_of(x):
            kernels.convolve[(triton.cdiv(blocks, BR), channels, parts)](
                x, self.windows, y, x[0].numel(), n * sizes[0], *sizes, PADDED=padded, GROUP=group, I=self.I, O=self.O,
                **self.constants, BH=self.BH, BR=BR, BK=self.short, num_warps=self.warps, num_stages=2 if padded else 4,
            )  # fmt: skip
        return y

    def weight_gradient(self, x: "_Planes", g_y: Tensor) -> Tensor:
        """The gradient of the weight, in float32, from the inputs (I = 1) and the gradient of the outputs."""
        x, (n, *sizes) = x
        channels = x.shape[0] // self.groups
        rows, BK = self.kernel[0] * self.kernel[1] * self.run, 64
        parts = triton.cdiv(rows, BK), triton.cdiv(self.columns, self.BN)
        tiles = channels * triton.cdiv(n * sizes[0] * sizes[1] * triton.cdiv(sizes[2], self.BW), self.short)
        shares = max(1, min(tiles, PROGRAMS // (self.groups * prod(parts))))
        sums = x.new_empty(self.groups, shares, parts[0] * BK, parts[1] * self.BN, dtype=torch.float32)
        with torch.cuda.device_of(x):
            kernels.weight_gradient[(prod(parts), shares, self.groups)](
                x, g_y, sums, x[0].numel(), n * sizes[0], *sizes, channels, shares, O=self.O, **self.constants,
                BR=self.short, BK=BK, num_warps=self.warps, num_stages=2,
            )  # fmt: skip
        banded = sums.sum(1)[:, :rows, : self.columns].contiguous()  # (groups, KT*KH*run, BW*O)
        # A tap of the kernel is a diagonal of the banded matrix.
        size, step = (self.groups, *self.kernel, self.BW, self.O), self.columns
        strides = (rows * step, self.kernel[1] * self.run * step, self.run * step, step, step + self.O, 1)
        return banded.as_strided(size, strides).sum(4).movedim(4, 1).unsqueeze(2)  # (groups, O, 1, KT, KH, KW)

    @property
    def constants(self) -> dict[str, int | str]:
        """Constants of both kernels, for which they are compiled."""
        sizes = dict(zip(("KT", "KH", "KW"), self.kernel, strict=True))
        return sizes | {"BW": self.BW, "RUN": self.run, "BN": self.BN, "PRECISION": self.precision}


def _block(size: int) -> int:
    return max(16, triton.next_power_of_2(size))  # matrix products need sizes of at least 16


def _tile(size: int, least: int, programs: Callable[[int], int]) -> int:
    """Halve a tile until it gives enough programs, or is at its least."""
    while size > least and programs(size) < PROGRAMS:
        size //= 2
    return size


def _precision(dtype: torch.dtype) -> str:
    """The precision of products. float32 is rounded to TF32 if PyTorch's switch for matrix products allows it."""
    matmul = torch.backends.cuda.matmul
    tf32 = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32  # torch 2.8
    return "tf32" if dtype == torch.float32 and tf32 else "ieee"


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / |x| over the last dimension in the type of x, and 1 / |x| in float32."""
    wide = x.float()
    scale = (wide.square().sum(-1, keepdim=True) + EPSILON).rsqrt()
    return (wide * scale).to(x.dtype), scale
