"""RSA in convolutions and matrix products that processors like, in plain PyTorch: the same function as ``ops.rsa``.

Four changes to the order of the arithmetic of the paper's Fig. 2 (RSA, NeurIPS 2021), none to the result:

- A (kT, kH, kW) convolution of (N, T, H, W, C) is a (kH, kW) convolution of N*T images, whose kT frames around are
  input channels: one grouped Conv2d in channels_last memory in place of Conv3d, and its output is already one small
  matrix a position. H2 and G see the same input and are one convolution; P1 and I are biases.
- From left to right, code = q (P1 + X^K * H1), u = code (H2^T X^V)^T, y = u (I + X^V * G): every product has the L
  heads as rows, none is of D x D matrices.
- Where a row of the map is hardly longer than the kernel, H2 and G are applied to the code and to u instead of to the
  values: attention of a row of positions to the rows around, with no convolution (``RowContext``).
- The backward pass is written out and goes over a few frames at a time, as does a forward pass that needs no gradient.
  So the small matrices exist for a few frames only, apart from what the forward pass keeps: the convolutions' outputs.

Letters: N, T, H, W positions, of which a chunk has P; L heads, K key, V value, D latent channels; R = kT*kH.
"""

import torch
from torch import Tensor

from .rsa_forms import ConvolvedContext, Relation, RowContext

CHUNK_BYTES = 10 << 20  # of a chunk's small matrices: more takes memory, less lays the weights out too often
ROWS_PAY = 2  # times less arithmetic, which makes up for the smaller products of RowContext
EPSILON = 1e-6


def relational_self_attention(
    projected: Tensor,
    H2: Tensor,
    H1: Tensor | None,
    P1: Tensor | None,
    G: Tensor | None,
    I: Tensor | None,
    num_heads: int,
) -> Tensor:
    """The output of RSA from the queries, keys and values of every position, before they are normalised.

    A term that the variant has not is ``None``: H1 and P1 for the basic kernel "V", P1 for "R", likewise G and I.

    Args: ``projected`` (N, T, H, W, L*K [+ K] + V); ``H2`` (D, 1, kT, kH, kW); ``H1`` (K*D, 1, kT, kH, kW);
        ``P1`` (1, K, D); ``G`` (V, 1, kT, kH, kW); ``I`` (1, V, V).
    Returns (N, T, H, W, V*L), channel v*L + l for head l, in the type of ``projected``. Gradients of first order.
    """
    inputs = (projected, H2, H1, P1, G, I)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return torch.ops.rsa.fused(*inputs, num_heads, keep)[0]


def why_not(device: torch.device, dtype: torch.dtype, kernel_type: str, feat_type: str) -> str | None:
    """Why this path cannot be used; ``None``, since it always can."""
    return None


@torch.library.custom_op("rsa::fused", mutates_args=())
def _fused(
    projected: Tensor,
    H2: Tensor,
    H1: Tensor | None,
    P1: Tensor | None,
    G: Tensor | None,
    I: Tensor | None,
    num_heads: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(projected.device.type, enabled=False):
        setting = _Setting(projected, H2, H1, P1, G, I, num_heads)
        queries, keys, values = setting.parts(projected)
        k, v = (x if x is None else _unit(x)[0] for x in (keys, values))
        y = projected.new_empty(*projected.shape[:4], setting.value * num_heads)
        relations, contexts = setting.kept(projected, keep)
        for clips, frames in setting.chunks():
            q = queries[clips, frames]
            norm = _norm(q).view(-1, 1, num_heads)  # (P, 1, L); y is linear in q, so that y is what is divided
            code = q.flatten(0, 3)  # (P, L, K)
            if k is not None:
                relation = setting.relation.forward(k[clips], frames)  # (P, K, D)
                code = torch.bmm(code, relation)  # (P, L, D)
                if keep:
                    setting.slice(relations, clips, frames).copy_(relation)
            part, context = setting.context.forward(v[clips], code, frames)  # (P, L, V)
            if contexts.numel():
                setting.slice(contexts, clips, frames).copy_(context)
            to = y[clips, frames].view(-1, setting.value, num_heads)
            torch.div(part.transpose(1, 2), norm.to(part.dtype), out=to)
        return y, relations, contexts


@_fused.register_fake
def _(projected, H2, H1, P1, G, I, num_heads, keep):
    setting = _Setting(projected, H2, H1, P1, G, I, num_heads)
    y = projected.new_empty(*projected.shape[:4], setting.value * num_heads)
    return y, *setting.kept(projected, keep)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.num_heads, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, gradient, *_):
    tensors = ctx.saved_tensors
    if gradient is None:
        return (None,) * 8
    gradients = torch.ops.rsa.fused_backward(gradient, *tensors, ctx.num_heads)
    present = iter(gradients)
    return *(None if x is None else next(present) for x in tensors[:6]), None, None


_fused.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("rsa::fused_backward", mutates_args=())
def _fused_backward(
    gradient: Tensor,
    projected: Tensor,
    H2: Tensor,
    H1: Tensor | None,
    P1: Tensor | None,
    G: Tensor | None,
    I: Tensor | None,
    relations: Tensor,
    contexts: Tensor,
    num_heads: int,
) -> list[Tensor]:
    """The gradients of ``projected`` and of the parameters that are there, in their order."""
    if not projected.numel():
        return [torch.zeros_like(x) for x in (projected, H2, H1, P1, G, I) if x is not None]
    with torch.autocast(projected.device.type, enabled=False):
        setting = _Setting(projected, H2, H1, P1, G, I, num_heads)
        queries, keys, values = setting.parts(projected)
        (k, k_norm), (v, v_norm) = (None, None) if keys is None else _unit(keys), _unit(values)
        result = torch.empty_like(projected, memory_format=torch.contiguous_format)
        g_queries, g_keys, g_values = setting.parts(result)
        g_k, g_v = None if k is None else torch.zeros_like(k), torch.zeros_like(v)
        for clips, frames in setting.chunks():
            q, q_norm = _unit(queries[clips, frames])
            q = q.flatten(0, 3)  # (P, L, K)
            code = q
            if k is not None:
                relation = setting.slice(relations, clips, frames)
                if relation is None:
                    relation = setting.relation.forward(k[clips], frames)
                code = torch.bmm(q, relation)
            g_y = gradient[clips, frames].reshape(-1, setting.value, num_heads).transpose(1, 2).contiguous()
            context = setting.slice(contexts, clips, frames)
            g_code = setting.context.backward(v[clips], code, g_y, context, g_v[clips], frames)
            g_q = g_code
            if k is not None:
                g_q = torch.bmm(g_code, relation.transpose(1, 2))
                g_relation = torch.bmm(q.transpose(1, 2), g_code)
                setting.relation.backward(k[clips], g_relation, g_k[clips], frames)
            part = g_queries[clips, frames]
            part.copy_(_unit_gradient(g_q.view_as(part), queries[clips, frames], q_norm))
        if k is not None:
            g_keys.copy_(_unit_gradient(g_k, keys, k_norm))
        g_values.copy_(_unit_gradient(g_v, values, v_norm))
        pairs = zip(setting.gradients(), (H2, H1, P1, G, I), strict=True)
        return [result, *(g.reshape(x.shape).to(x.dtype, copy=True) for g, x in pairs if x is not None)]


@_fused_backward.register_fake
def _(gradient, projected, H2, H1, P1, G, I, relations, contexts, num_heads):
    result = torch.empty_like(projected, memory_format=torch.contiguous_format)
    return [result, *(x.new_empty(x.shape) for x in (H2, H1, P1, G, I) if x is not None)]


class _Setting:
    """The sizes of a call, and its two halves: the relation of the keys and the context of the values."""

    def __init__(self, projected, H2, H1, P1, G, I, num_heads):
        self.positions = projected.shape[:4]
        self.latent, self.heads = H2.shape[0], num_heads
        self.key = self.latent if H1 is None else H1.shape[0] // self.latent
        self.keys = 0 if H1 is None else self.key
        self.value = projected.shape[4] - num_heads * self.key - self.keys
        dtype = projected.dtype
        self.relation = None if H1 is None else Relation(H1, P1, self.key, self.latent, dtype)
        width, kernel_width = projected.shape[3], H2.shape[4]
        by_rows = num_heads * (self.latent + (self.value if G is None else 3 * self.value)) * width
        by_convolution = self.value * (self.latent + (0 if G is None else self.value)) * kernel_width
        form = RowContext if by_rows * ROWS_PAY < by_convolution else ConvolvedContext
        self.context = form(H2, G, I, self.value, width, dtype)
        # Of a position, in float32.
        self.matrix_bytes = 4 * (self.keys * self.latent + self.value * (self.latent + self.value))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(N, T, H, W, E) -> queries (N, T, H, W, L, K), keys (N, T, H, W, K), values (N, T, H, W, V)."""
        q, k, v = x.split([self.heads * self.key, self.keys, self.value], dim=-1)
        return q.unflatten(-1, (self.heads, self.key)), k if self.keys else None, v

    def kept(self, like: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """Room for what the forward pass keeps: the relation (N*T*H*W, K, D) and the context (N*T*H*W, V, D [+ V])."""
        n = self.positions.numel()
        relation = (n, self.key, self.latent) if keep and self.keys else (0,)
        columns = self.context.columns
        return like.new_empty(relation), like.new_empty((n, self.value, columns) if keep and columns else (0,))

    def chunks(self):
        """(clips, frames) slices whose matrices take about CHUNK_BYTES: some clips, or frames of one clip."""
        n, t, h, w = self.positions
        frames = max(1, CHUNK_BYTES // (h * w * self.matrix_bytes))
        if frames < t:
            frames = -(-t // -(-t // frames))  # as many chunks, of even length
        if frames >= t:
            for start in range(0, n, frames // t):
                yield slice(start, min(n, start + frames // t)), slice(0, t)
        else:
            for clip in range(n):
                for start in range(0, t, frames):
                    yield slice(clip, clip + 1), slice(start, min(t, start + frames))

    def slice(self, kept: Tensor, clips: slice, frames: slice) -> Tensor | None:
        """The matrices (P, rows, columns) of a chunk, of those kept for all positions."""
        return kept.view(*self.positions, *kept.shape[1:])[clips, frames].flatten(0, 3) if kept.numel() else None

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Of H2, H1, P1, G, I, after all chunks."""
        relation = (None, None) if self.relation is None else self.relation.gradients()
        g_h2, g_g, g_i = self.context.gradients()
        return g_h2, *relation, g_g, g_i


def _norm(x: Tensor) -> Tensor:
    """|x| over the last dimension, kept, in float32 or wider."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (torch.linalg.vecdot(wide, wide).unsqueeze(-1) + EPSILON).sqrt()  # epsilon as released


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / |x| over the last dimension, in the type of x; and |x|."""
    norm = _norm(x)
    return (x / norm).to(x.dtype), norm


def _unit_gradient(gradient: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    """The gradient of x from that of x / |x|, over the last dimension."""
    gradient, x = gradient.to(norm.dtype), x.to(norm.dtype)
    along = torch.linalg.vecdot(gradient, x).unsqueeze(-1) / norm.square()
    return (gradient - x * along) / norm
