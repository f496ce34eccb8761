"""The Triton kernels of ``rsa_triton``. None uses an atomic operation, so all results repeat bit for bit.

Two kernels belong to the convolutions of the neighbourhoods. The tensors are (C, P, I) and (C, P, O): for each of C
channels and P = N*T*H*W positions, I numbers are read and O are written.

- ``convolve``: y[c, p, o] = sum over taps m and inputs i of x[c, p + m, i] weight[m, i, o]. A block of BH x BW
  neighbouring positions (rows x columns) needs the same inputs: in each of KT frames, KH + BH - 1 rows of
  RUN = (BW + KW - 1) * I contiguous numbers. The outputs of a block are therefore the product of its inputs with a
  banded matrix of BH*BW*O columns, in which the kernel appears once for each position, shifted. A program computes BR
  blocks: a dense product of large matrices. The banded matrix is not stored, because a row of it is a window of the
  kernel with zeros around it.
- ``weight_gradient``: the gradient of this banded matrix, a product of the transposed inputs with the gradient of y.
  Each program adds its share of the blocks in a fixed order.

Two kernels belong to the products over L heads, with K, V and D channels of keys, values and codes. They read the
matrices of each position once: ``relation`` (K, P, D) and ``context`` (V, P, D + V), which is H2^T X^V beside X^V * G.

- ``heads``: code_l = sum_k q_lk (P1_k + relation_k), u_lv = context_v . code_l, y_l = sum_v u_lv (I_v + mixing_v).
- ``heads_backward``: the gradients of queries and matrices.

Positions past the end of a tensor are masked. Within one channel, offsets are 32-bit integers.
"""

try:
    import triton
    import triton.language as tl

    jit, constexpr = triton.jit, tl.constexpr
    INTERPRETED = constexpr(bool(triton.knobs.runtime.interpret))  # TRITON_INTERPRET=1: numpy runs the kernels
except ImportError:
    triton, constexpr, INTERPRETED = None, int, False

    def jit(kernel):
        return kernel


@jit
def _dot(a, b, sum_of, PRECISION: constexpr):
    if INTERPRETED:  # the interpreter's product reads the bits of a bfloat16 as an integer
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum_of, input_precision=PRECISION)


@jit
def _places(r, T, H, W, BH: constexpr, BW: constexpr):
    """Clip, frame, row and column of the first position of block r."""
    across, down = tl.cdiv(W, BW), tl.cdiv(H, BH)
    frame = r // across // down
    return frame // T, frame % T, r // across % down * BH, r % across * BW


@jit
def _padded(x, n, t, h, w, k, T, H, W, KT: constexpr, KH: constexpr, KW: constexpr, BW: constexpr, RUN: constexpr):
    """Inputs k of each block, (blocks, inputs): number k % RUN of a row. ``x`` has zeros around each clip, I is 1."""
    down, across = H + KH - 1, tl.cdiv(W, BW) * BW + KW - 1
    at = ((n * (T + KT - 1) + t) * down + h) * across + w
    k = tl.where(k < KT * KH * RUN, k, 0)
    return tl.load(x + at[:, None] + ((k // RUN // KH * down + k // RUN % KH) * across + k % RUN)[None, :])


@jit
def _masked(x, here, n, t, h, w, k, T, H, W, I: constexpr, KT: constexpr, KH: constexpr, KW: constexpr,
            ROWS: constexpr, RUN: constexpr):  # fmt: skip
    """The same for I inputs at a position and blocks that need ROWS rows. ``x`` has no padding."""
    kt, kh, kw = k // RUN // ROWS - KT // 2, k // RUN % ROWS - KH // 2, k // I % (RUN // I) - KW // 2
    at = (((n * T + t) * H + h) * W + w) * I
    offset = ((kt * H + kh) * W - KW // 2) * I + k % RUN
    t, h, w = t[:, None] + kt[None, :], h[:, None] + kh[None, :], w[:, None] + kw[None, :]
    inside = here[:, None] & (t >= 0) & (t < T) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    return tl.load(x + at[:, None] + offset[None, :], mask=inside, other=0)


@jit
def convolve(
    x, weight, y, step, frames, T, H, W,
    PADDED: constexpr, GROUP: constexpr, I: constexpr, O: constexpr, KT: constexpr, KH: constexpr, KW: constexpr,
    BH: constexpr, BW: constexpr, RUN: constexpr, BR: constexpr, BK: constexpr, BN: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """``weight`` is (.., KT, KH + 2 (BH - 1), KW + 2 (BW - 1), I, O), zero outside the kernel, ``GROUP`` numbers each.

    A channel of ``x`` has ``step`` numbers. If it is padded, I and BH are 1.
    """
    c = tl.program_id(1).to(tl.int64)
    x += c * step
    y += c * frames * H * W * O
    weight += c * GROUP
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    here = r < frames * tl.cdiv(H, BH) * tl.cdiv(W, BW)
    clip, t, h, w = _places(tl.where(here, r, 0), T, H, W, BH, BW)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    row, column = n // O // BW, n // O % BW
    ROWS: constexpr = KH + BH - 1
    ACROSS: constexpr = (KW + 2 * BW - 2) * I * O
    window = (BH - 1 - row) * ACROSS + (BW - 1 - column) * (I * O) + n % O

    result = tl.zeros((BR, BN), tl.float32)
    for first in range(0, KT * ROWS * RUN, BK):
        k = first + tl.arange(0, BK)
        if PADDED:
            a = _padded(x, clip, t, h, w, k, T, H, W, KT, KH, KW, BW, RUN)
        else:
            a = _masked(x, here, clip, t, h, w, k, T, H, W, I, KT, KH, KW, ROWS, RUN)
        at = (k // RUN // ROWS * (ROWS + BH - 1) + k // RUN % ROWS) * ACROSS + k % RUN * O
        known = (k < KT * ROWS * RUN)[:, None] & (row < BH)[None, :]
        b = tl.load(weight + at[:, None] + window[None, :], mask=known, other=0)
        result = _dot(a, b, result, PRECISION)

    first = ((clip * T + t) * H + h) * W + w
    to = (first[:, None] + (row * W + column)[None, :]) * O + (n % O)[None, :]
    inside = here[:, None] & (row < BH)[None, :] & (h[:, None] + row < H) & (w[:, None] + column < W)
    tl.store(y + to, result.to(y.dtype.element_ty), mask=inside)


@jit
def weight_gradient(
    x, g_y, parts, step, frames, T, H, W, channels, shares,
    O: constexpr, KT: constexpr, KH: constexpr, KW: constexpr, BW: constexpr, RUN: constexpr,
    BR: constexpr, BK: constexpr, BN: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """``x`` is padded. ``parts`` is (groups, shares, KT*KH*RUN, BW*O), both sizes of a part rounded up."""
    share, group = tl.program_id(1), tl.program_id(2).to(tl.int64)
    ACROSS: constexpr = (BW * O + BN - 1) // BN
    k = tl.program_id(0) // ACROSS * BK + tl.arange(0, BK)
    n = tl.program_id(0) % ACROSS * BN + tl.arange(0, BN)
    column = n // O
    blocks = frames * H * tl.cdiv(W, BW)
    tiles = tl.cdiv(blocks, BR)
    result = tl.zeros((BK, BN), tl.float32)
    for item in range(share, channels * tiles, shares):
        c = group * channels + item // tiles
        r = item % tiles * BR + tl.arange(0, BR)
        here = r < blocks
        clip, t, h, w = _places(tl.where(here, r, 0), T, H, W, 1, BW)
        a = _padded(x + c * step, clip, t, h, w, k, T, H, W, KT, KH, KW, BW, RUN)
        at = (((clip * T + t) * H + h) * W + w) * O
        inside = here[:, None] & (column < BW)[None, :] & (w[:, None] + column < W)
        g = tl.load(g_y + c * frames * H * W * O + at[:, None] + n[None, :], mask=inside, other=0)
        result = _dot(tl.trans(a), g, result, PRECISION)
    to = (group * shares + share) * (tl.num_programs(0) // ACROSS * BK)
    tl.store(parts + (to + k)[:, None] * (ACROSS * BN) + n[None, :], result)


@jit
def _own(P, D, V, LP: constexpr, BP: constexpr, BD: constexpr, BV: constexpr):
    """The positions, heads and columns of a program, which of them exist, and where rows of ``context`` start."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    d, w = tl.arange(0, BD), tl.arange(0, BV)
    in_d, in_w = (p < P)[:, None] & (d < D)[None, :], (p < P)[:, None] & (w < V)[None, :]
    return p, tl.arange(0, LP), d, w, in_d, in_w, p[:, None] * (D + V)


@jit
def _code(projected, relation, p1, p, l, d, P, E, K, D, L, LP: constexpr, BP: constexpr, BD: constexpr, EPS: constexpr):
    """The codes of a tile of positions (LP, BP, BD), and 1 / |q| (LP, BP)."""
    known, inside = (l < L)[:, None] & (p < P)[None, :], (p < P)[:, None] & (d < D)[None, :]
    code = tl.zeros((LP, BP, BD), tl.float32)
    square = tl.zeros((LP, BP), tl.float32)
    for k in range(K):
        q = tl.load(projected + p[None, :] * E + (l * K + k)[:, None], mask=known, other=0).to(tl.float32)
        matrix = _matrix(relation, p1, p[:, None] * D + d[None, :], d, inside, D)
        square += q * q
        code += q[:, :, None] * matrix[None, :, :]
        relation += tl.full((), P, tl.int64) * D
        p1 += D
    scale = tl.rsqrt(square + EPS)
    return code * scale[:, :, None], scale


@jit
def _matrix(matrices, bias, at, column, inside, columns):
    """A row of the matrices of a tile of positions, with its bias, in float32."""
    row = tl.load(bias + column, mask=column < columns, other=0).to(tl.float32)
    return tl.load(matrices + at, mask=inside, other=0).to(tl.float32) + row[None, :]


@jit
def heads(
    projected, relation, context, p1, i, y_out, P, E, K, V, D, L,
    LP: constexpr, BP: constexpr, BD: constexpr, BV: constexpr, EPS: constexpr,
):  # fmt: skip
    p, l, d, w, in_d, in_w, at = _own(P, D, V, LP, BP, BD, BV)
    code, _ = _code(projected, relation, p1, p, l, d, P, E, K, D, L, LP, BP, BD, EPS)
    y = tl.zeros((LP, BP, BV), tl.float32)
    for _ in range(V):
        own = tl.load(context + at + d[None, :], mask=in_d, other=0).to(tl.float32)
        u = tl.sum(own[None, :, :] * code, 2)  # (LP, BP)
        y += u[:, :, None] * _matrix(context, i, at + D + w[None, :], w, in_w, V)[None, :, :]
        context += tl.full((), P, tl.int64) * (D + V)
        i += V
    to = (p[None, :, None] * V + w[None, None, :]) * L + l[:, None, None]
    tl.store(y_out + to, y.to(y_out.dtype.element_ty), mask=(l < L)[:, None, None] & in_w[None, :, :])


@jit
def heads_backward(
    projected, relation, context, p1, i, gradient, g_projected, g_relation, g_context, P, E, K, V, D, L,
    LP: constexpr, BP: constexpr, BD: constexpr, BV: constexpr, EPS: constexpr,
):  # fmt: skip
    p, l, d, w, in_d, in_w, at = _own(P, D, V, LP, BP, BD, BV)
    code, scale = _code(projected, relation, p1, p, l, d, P, E, K, D, L, LP, BP, BD, EPS)
    of = (p[None, :, None] * V + w[None, None, :]) * L + l[:, None, None]
    g_y = tl.load(gradient + of, mask=(l < L)[:, None, None] & in_w[None, :, :], other=0).to(tl.float32)
    g_code = tl.zeros((LP, BP, BD), tl.float32)
    for _ in range(V):
        own = tl.load(context + at + d[None, :], mask=in_d, other=0).to(tl.float32)
        u = tl.sum(own[None, :, :] * code, 2)  # (LP, BP)
        g_u = tl.sum(_matrix(context, i, at + D + w[None, :], w, in_w, V)[None, :, :] * g_y, 2)
        g_code += g_u[:, :, None] * own[None, :, :]
        g_own, g_mixing = tl.sum(g_u[:, :, None] * code, 0), tl.sum(u[:, :, None] * g_y, 0)
        tl.store(g_context + at + d[None, :], g_own.to(g_context.dtype.element_ty), mask=in_d)
        tl.store(g_context + at + D + w[None, :], g_mixing.to(g_context.dtype.element_ty), mask=in_w)
        context += tl.full((), P, tl.int64) * (D + V)
        g_context += tl.full((), P, tl.int64) * (D + V)
        i += V

    known, at = (l < L)[:, None] & (p < P)[None, :], p[:, None] * D + d[None, :]
    along = tl.sum(code * g_code, 2)  # the gradient of q / |q| along q / |q|, because the code is linear in it
    for k in range(K):
        channel = p[None, :] * E + (l * K + k)[:, None]
        q = tl.load(projected + channel, mask=known, other=0).to(tl.float32) * scale
        g_q = tl.sum(_matrix(relation, p1, at, d, in_d, D)[None, :, :] * g_code, 2)
        g_q = (g_q - q * along) * scale
        tl.store(g_projected + channel, g_q.to(g_projected.dtype.element_ty), mask=known)
        g_matrix = tl.sum(q[:, :, None] * g_code, 0)
        tl.store(g_relation + at, g_matrix.to(g_relation.dtype.element_ty), mask=in_d)
        relation += tl.full((), P, tl.int64) * D
        g_relation += tl.full((), P, tl.int64) * D
        p1 += D
