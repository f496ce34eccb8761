"""RSA in Triton kernels for GPUs: it computes ``ops.rsa`` without storing the matrices of the positions.

At each position, the relation X^K * H1 has K x D numbers, the context H2^T X^V has V x D, and the mixing X^V * G has
V x V. For all positions together they are many times larger than the output. Here a program computes them for a tile of
positions and for one channel of the keys or values at a time. It adds the products to its L codes (D numbers each) and
L outputs (V numbers each):

- ``_forward``: code_l = sum_k q_lk (P1_k + relation_k), then u_lv = context_v . code_l and y_l = sum_v u_lv mixing_v.
- ``_backward``: the gradients of u, of the code and of the queries, from dy and the code. It recomputes the context,
  the mixing and the relation.
- ``_backward_taps``: the gradients of the three weights of a neighbourhood (H1, H2, G) have the same form, a sum over
  heads of a factor times a row: q_lk dcode_l, du_lv code_l, u_lv dy_l. One kernel is started three times. It computes
  the gradients of the weights and adds the gradients of keys or values atomically. This is most of the time of a
  training step.

The order of atomic additions varies, so the last digits of the gradient of ``projected`` differ from run to run. All
other results are the same every time. The backward saves the inputs and the code (N, T, H, W, L, D).

Letters: P = N x T x H x W positions, BP per program; L heads; K key, V value and D latent channels; M taps, which are
the positions of a neighbourhood. BD, BV, MP, LP are D, V, M, L rounded up to sizes that a matrix product allows. A
plane is one channel of the keys or values with its zero padding. In a plane, each tap is a constant offset.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl

    jit, constexpr = triton.jit, tl.constexpr
    INTERPRETED = constexpr(bool(triton.knobs.runtime.interpret))  # TRITON_INTERPRET=1: numpy runs the kernels
except ImportError:
    triton, constexpr, INTERPRETED = None, int, False

    def jit(kernel):
        return kernel


EPSILON = 1e-6
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROGRAMS = 1024  # programs that share a gradient of weights: enough for any GPU, and few partial sums to add


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

    Errors: ``ValueError`` if ``why_not`` gives a reason for the input; Triton's own error for bfloat16 on a GPU with
        compute capability below 8.0.
    """
    return torch.ops.rsa.triton(projected, H2, H1, P1, G, I, num_heads)[0]


@torch.library.custom_op("rsa::triton", mutates_args=())
def _triton(
    projected: Tensor,
    H2: Tensor,
    H1: Tensor,
    P1: Tensor,
    G: Tensor,
    I: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    call = _Call(projected, H2, H1, P1, G, I, num_heads)
    y = projected.new_empty(*projected.shape[:4], call.V * call.L)
    code = projected.new_empty(*projected.shape[:4], call.L, call.D)
    q, k, v = (_unit(x)[0] for x in call.parts(projected))
    call.by_tile(_forward, call.by_head(q), call.planes(k), call.planes(v), code, y)
    return y, code


@_triton.register_fake
def _(projected, H2, H1, P1, G, I, num_heads):
    D, L = H2.shape[0], num_heads
    V = projected.shape[4] - (L + 1) * (H1.shape[0] // D)
    return projected.new_empty(*projected.shape[:4], V * L), projected.new_empty(*projected.shape[:4], L, D)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx, gradient, _):
    if gradient is None:
        return (None,) * 7
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
    code: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``projected``, H2, H1, P1, G and I."""
    call = _Call(projected, H2, H1, P1, G, I, num_heads)
    parts = call.parts(projected)
    q, k, v = (_unit(x) for x in parts)
    queries, keys, values = call.by_head(q[0]), call.planes(k[0]), call.planes(v[0])
    rows = gradient.unflatten(-1, (call.V, call.L)).transpose(-1, -2).to(projected.dtype).contiguous()  # (.., L, V)
    g_queries, g_code = torch.empty_like(queries), torch.empty_like(code)
    u, g_u = (projected.new_empty(call.V, call.L, call.P) for _ in range(2))
    call.by_tile(_backward, queries, keys, values, code, rows, g_queries, g_code, u, g_u)

    g_keys, g_values = (torch.zeros_like(x, dtype=torch.float32) for x in (keys, values))
    g_h1, g_p1 = call.by_tap(queries, g_code, keys, call.h1, g_keys)
    g_h2, _ = call.by_tap(g_u, code, values, call.h2, g_values)
    g_g, g_i = call.by_tap(u, rows, values, call.g, g_values)

    g_queries = g_queries.view(call.K, call.L, *projected.shape[:4]).permute(2, 3, 4, 5, 1, 0)
    result = torch.empty_like(projected, memory_format=torch.contiguous_format)
    found = (g_queries, call.inner(g_keys).movedim(0, -1), call.inner(g_values).movedim(0, -1))
    for part, g, (x, scale) in zip(call.parts(result), found, (q, k, v), strict=True):
        g, x = g.float(), x.float()
        part.copy_((g - x * (x * g).sum(-1, keepdim=True)) * scale)
    g_h2, g_g = g_h2.sum(0), g_g.sum(0)  # over the channels of the values
    pairs = zip((g_h2, g_h1, g_p1, g_g, g_i), (H2, H1, P1, G, I), strict=True)
    return result, *(x.new_empty(x.shape).copy_(g.reshape(x.shape)) for g, x in pairs)


@_triton_backward.register_fake
def _(gradient, projected, H2, H1, P1, G, I, code, num_heads):
    result = torch.empty_like(projected, memory_format=torch.contiguous_format)
    return result, *(x.new_empty(x.shape) for x in (H2, H1, P1, G, I))


class _Call:
    """The sizes of a call, its parameters as the kernels read them, and their launches."""

    def __init__(self, projected, H2, H1, P1, G, I, num_heads):
        reason = why_not(projected.device, projected.dtype, "VplusR", "VplusR")
        if reason:
            raise ValueError(f"no Triton kernel of RSA for {projected.dtype} on {projected.device}: {reason}")
        self.kernel_size, self.shape, self.D, self.L = H2.shape[2:], projected.shape[:4], H2.shape[0], num_heads
        self.K = H1.shape[0] // self.D
        self.V = projected.shape[4] - (self.L + 1) * self.K
        self.P, self.M = self.shape.numel(), self.kernel_size.numel()
        self.LP = triton.next_power_of_2(self.L)
        self.BD, self.BV = _block(self.D), _block(self.V)
        self.BM = min(64, _block(self.M))
        self.MP = triton.cdiv(self.M, self.BM) * self.BM

        def by_tap(weight: Tensor, size: int) -> Tensor:
            weight = weight.reshape(-1, size, self.M).transpose(1, 2).to(projected.dtype)  # (K or 1, M, D or V)
            return F.pad(weight, (0, _block(size) - size, 0, self.MP - self.M)).contiguous()  # (K or 1, MP, BD or BV)

        self.h1, self.h2, self.g = by_tap(H1, self.D), by_tap(H2, self.D), by_tap(G, self.V)
        self.p1 = F.pad(P1[0].to(projected.dtype), (0, self.BD - self.D)).contiguous()  # (K, BD)
        self.i = F.pad(I[0].to(projected.dtype), (0, self.BV - self.V)).contiguous()  # (V, BV)

        kt, kh, kw = self.kernel_size
        n, t, h, w = self.shape
        self.padded = (n, t + kt - 1, h + kh - 1, w + kw - 1)
        count = n * self.padded[1] * self.padded[2] * self.padded[3]
        if count >= 2**31:
            raise ValueError(f"{count} padded positions are too many for the kernels (2**31); use a smaller batch")
        place = torch.arange(count, dtype=torch.int32, device=projected.device).view(self.padded)
        self.corners = place[:, :t, :h, :w].flatten()  # (P): start of each position's neighbourhood in a plane
        self.taps = F.pad(place[:1, :kt, :kh, :kw].flatten(), (0, self.MP - self.M))  # (MP): offsets of the taps
        self.precision = "tf32" if projected.dtype == torch.float32 and _tf32() else "ieee"

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, T, H, W, E) -> queries (N, T, H, W, L, K), keys (N, T, H, W, K), values (N, T, H, W, V)."""
        q, k, v = x.split([self.L * self.K, self.K, self.V], dim=-1)
        return q.unflatten(-1, (self.L, self.K)), k, v

    def by_head(self, q: Tensor) -> Tensor:
        return q.permute(5, 4, 0, 1, 2, 3).reshape(self.K, self.L, self.P).contiguous()  # (K, L, P)

    def planes(self, x: Tensor) -> Tensor:
        """Keys or values (N, T, H, W, C) -> (C, N, T+kT-1, H+kH-1, W+kW-1), padded with zeros."""
        result = x.new_zeros(x.shape[-1], *self.padded)
        self.inner(result).copy_(x.movedim(-1, 0))
        return result

    def inner(self, planes: Tensor) -> Tensor:
        (_, t, h, w), (kt, kh, kw) = self.shape, (k // 2 for k in self.kernel_size)
        return planes[:, :, kt : kt + t, kh : kh + h, kw : kw + w]  # (C, N, T, H, W)

    def by_tile(self, kernel, queries: Tensor, keys: Tensor, values: Tensor, *tensors: Tensor) -> None:
        """Start ``_forward`` or ``_backward``, one program for every BP positions."""
        BP = min(64, max(16, 8192 // (self.LP * max(self.BD, self.BV))))  # the L codes must fit in registers
        sizes = (self.P, keys[0].numel(), self.K, self.V, self.D, self.L)
        weights = (self.h1, self.p1, self.h2, self.g, self.i)
        blocks = {"LP": self.LP, "BP": BP, "BD": self.BD, "BV": self.BV, "BM": self.BM, "MP": self.MP}
        with torch.cuda.device_of(queries):
            kernel[(triton.cdiv(self.P, BP),)](
                queries, keys, values, *weights, self.corners, self.taps, *tensors, *sizes, **blocks,
                PRECISION=self.precision, num_warps=4, num_stages=1,
            )  # fmt: skip

    def by_tap(self, factors: Tensor, rows: Tensor, planes: Tensor, weights: Tensor, g_planes: Tensor):
        """Start ``_backward_taps`` and sum its parts: the gradients of weights (C, D|V, M) and a bias (C, D|V)."""
        channels, size, block = planes.shape[0], rows.shape[-1], weights.shape[-1]
        room = 4096 if rows.is_cuda and torch.cuda.get_device_capability(rows.device) < (9, 0) else 8192
        BP = min(64, max(16, room // (block * rows.element_size())))  # more spills; older GPUs have less memory
        shares = max(1, min(triton.cdiv(self.P, BP), PROGRAMS // channels))
        g_weights = factors.new_empty(channels, shares, self.MP, block, dtype=torch.float32)
        g_bias = factors.new_empty(channels, shares, block, dtype=torch.float32)
        with torch.cuda.device_of(planes):
            _backward_taps[(channels, shares, self.MP // self.BM)](
                factors, rows, planes, weights, self.corners, self.taps, g_planes, g_weights, g_bias,
                self.P, planes[0].numel(), weights[0].numel() if weights.shape[0] > 1 else 0, self.M, size, shares,
                L=self.L, BP=BP, BD=block, BM=self.BM, MP=self.MP, PRECISION=self.precision, num_warps=4,
                num_stages=1 if rows.dtype == torch.float32 else 2,
            )  # fmt: skip
        return g_weights.sum(1)[:, : self.M, :size].transpose(1, 2), g_bias.sum(1)[:, :size]


def _block(size: int) -> int:
    return max(16, triton.next_power_of_2(size))  # matrix products need sizes of at least 16


def _tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32  # torch 2.8


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / |x| over the last dimension in the type of x, and 1 / |x| in float32."""
    wide = x.float()
    scale = (wide.square().sum(-1, keepdim=True) + EPSILON).rsqrt()
    return (wide * scale).to(x.dtype), scale


@jit
def _dot(a, b, sum_of, PRECISION: constexpr):
    if INTERPRETED:  # the interpreter's product reads the bits of a bfloat16 as an integer
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum_of, input_precision=PRECISION)


@jit
def _product(plane, weight, at, taps, BP: constexpr, BD: constexpr, BM: constexpr, MP: constexpr, PRECISION: constexpr):
    """sum_m plane[p + m] weight[m, d] for a tile of positions: (BP, BD)."""
    d = tl.arange(0, BD)
    result = tl.zeros((BP, BD), tl.float32)
    for first in range(0, MP, BM):
        m = first + tl.arange(0, BM)
        around = tl.load(plane + at[:, None] + tl.load(taps + m)[None, :])  # (BP, BM)
        result = _dot(around, tl.load(weight + m[:, None] * BD + d[None, :]), result, PRECISION)
    return result


@jit
def _forward(
    queries, keys, values, h1, p1, h2, g, i, corners, taps, code_out, y_out, P, plane, K, V, D, L,
    LP: constexpr, BP: constexpr, BD: constexpr, BV: constexpr, BM: constexpr, MP: constexpr, PRECISION: constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    l, d, w = tl.arange(0, LP), tl.arange(0, BD), tl.arange(0, BV)
    at = tl.load(corners + p, mask=p < P, other=0)  # results past the last position are not stored
    here = (l < L)[:, None] & (p < P)[None, :]  # (LP, BP)
    by_head = l.to(tl.int64)[:, None] * P + p[None, :]
    step = tl.full((), plane, tl.int64)

    code = tl.zeros((LP, BP, BD), tl.float32)
    for _ in range(K):
        relation = _product(keys, h1, at, taps, BP, BD, BM, MP, PRECISION) + tl.load(p1 + d)[None, :]
        q = tl.load(queries + by_head, mask=here, other=0).to(tl.float32)
        code += q[:, :, None] * relation[None, :, :]
        queries += L * P
        keys += step
        h1 += MP * BD
        p1 += BD
    to = (p[None, :] * L + l[:, None])[:, :, None] * D + d[None, None, :]
    tl.store(code_out + to, code.to(code_out.dtype.element_ty), mask=here[:, :, None] & (d < D)[None, None, :])

    y = tl.zeros((LP, BP, BV), tl.float32)
    for _ in range(V):
        context = _product(values, h2, at, taps, BP, BD, BM, MP, PRECISION)
        mixing = _product(values, g, at, taps, BP, BV, BM, MP, PRECISION) + tl.load(i + w)[None, :]
        u = tl.sum(context[None, :, :] * code, 2)  # (LP, BP)
        y += u[:, :, None] * mixing[None, :, :]
        values += step
        i += BV
    to = (p[None, :, None] * V + w[None, None, :]) * L + l[:, None, None]
    tl.store(y_out + to, y.to(y_out.dtype.element_ty), mask=here[:, :, None] & (w < V)[None, None, :])


@jit
def _backward(
    queries, keys, values, h1, p1, h2, g, i, corners, taps, code, rows, g_queries, g_code_out, u_out, g_u_out,
    P, plane, K, V, D, L,
    LP: constexpr, BP: constexpr, BD: constexpr, BV: constexpr, BM: constexpr, MP: constexpr, PRECISION: constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    l, d, w = tl.arange(0, LP), tl.arange(0, BD), tl.arange(0, BV)
    at = tl.load(corners + p, mask=p < P, other=0)
    here = (l < L)[:, None] & (p < P)[None, :]  # (LP, BP)
    by_head = l.to(tl.int64)[:, None] * P + p[None, :]
    by_position = (p[None, :] * L + l[:, None])[:, :, None]  # (LP, BP, 1)
    in_code, in_rows = here[:, :, None] & (d < D)[None, None, :], here[:, :, None] & (w < V)[None, None, :]
    step = tl.full((), plane, tl.int64)

    own = tl.load(code + by_position * D + d[None, None, :], mask=in_code, other=0).to(tl.float32)
    g_y = tl.load(rows + by_position * V + w[None, None, :], mask=in_rows, other=0).to(tl.float32)
    g_code = tl.zeros((LP, BP, BD), tl.float32)
    for _ in range(V):
        context = _product(values, h2, at, taps, BP, BD, BM, MP, PRECISION)
        mixing = _product(values, g, at, taps, BP, BV, BM, MP, PRECISION) + tl.load(i + w)[None, :]
        u = tl.sum(context[None, :, :] * own, 2)  # (LP, BP)
        g_u = tl.sum(mixing[None, :, :] * g_y, 2)
        g_code += g_u[:, :, None] * context[None, :, :]
        tl.store(u_out + by_head, u.to(u_out.dtype.element_ty), mask=here)
        tl.store(g_u_out + by_head, g_u.to(g_u_out.dtype.element_ty), mask=here)
        u_out += L * P
        g_u_out += L * P
        values += step
        i += BV
    tl.store(g_code_out + by_position * D + d[None, None, :], g_code.to(g_code_out.dtype.element_ty), mask=in_code)

    for _ in range(K):
        relation = _product(keys, h1, at, taps, BP, BD, BM, MP, PRECISION) + tl.load(p1 + d)[None, :]
        g_q = tl.sum(relation[None, :, :] * g_code, 2)
        tl.store(g_queries + by_head, g_q.to(g_queries.dtype.element_ty), mask=here)
        g_queries += L * P
        keys += step
        h1 += MP * BD
        p1 += BD


@jit
def _backward_taps(
    factors, rows, planes, weights, corners, taps, g_planes, g_weights, g_bias, P, plane, weight, M, D, shares,
    L: constexpr, BP: constexpr, BD: constexpr, BM: constexpr, MP: constexpr, PRECISION: constexpr,
):  # fmt: skip
    channel, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
    m, d = tl.program_id(2) * BM + tl.arange(0, BM), tl.arange(0, BD)
    tap = tl.load(taps + m)
    factors += channel * L * P
    planes += channel * plane
    g_planes += channel * plane
    across = tl.load(weights + channel * weight + m[None, :] * BD + d[:, None])  # (BD, BM)
    g_weight = tl.zeros((BM, BD), tl.float32)
    bias = tl.zeros((BD,), tl.float32)
    for first in range(share * BP, P, shares * BP):
        p = first + tl.arange(0, BP).to(tl.int64)
        here = p < P
        at = tl.load(corners + p, mask=here, other=0)[:, None] + tap[None, :]  # (BP, BM)
        g = tl.zeros((BP, BD), tl.float32)
        for l in tl.static_range(L):
            factor = tl.load(factors + l * P + p, mask=here, other=0).to(tl.float32)
            row = tl.load(rows + (p * L + l)[:, None] * D + d[None, :], mask=here[:, None] & (d < D)[None, :], other=0)
            g += factor[:, None] * row.to(tl.float32)
        bias += tl.sum(g, 0)
        g = g.to(planes.dtype.element_ty)
        around = tl.load(planes + at)
        g_weight = _dot(tl.trans(around), g, g_weight, PRECISION)
        g_around = _dot(g, across, tl.zeros((BP, BM), tl.float32), PRECISION)
        tl.atomic_add(g_planes + at, g_around, mask=here[:, None] & (m < M)[None, :], sem="relaxed")
    part = channel * shares + share
    tl.store(g_weights + (part * MP + m)[:, None] * BD + d[None, :], g_weight)
    tl.store(g_bias + part * BD + d, bias)  # every block of taps stores the same numbers
