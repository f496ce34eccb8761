"""A faster form of ``ops.rsa`` in plain PyTorch, from convolutions and matrix products.

The order of the arithmetic differs from the paper's Fig. 2 (RSA, NeurIPS 2021) in four points, with the same result:

- A (kT, kH, kW) convolution of (N, T, H, W, C) becomes a (kH, kW) convolution of images whose input channels are the kT
  neighbouring frames. Conv2d in channels_last memory replaces Conv3d, and its output already holds one small matrix per
  position. H2 and G have the same input and share one convolution. In this convolution, each channel of the values is
  an image. In the convolution with H1, each channel of the keys is a group.
- The products are taken from left to right: code = q (P1 + X^K * H1), u = code (H2^T X^V)^T, y = u (I + X^V * G).
  The L heads are rows or columns of every product. Two D x D matrices are never multiplied.
- If the map is hardly larger than the kernel, H2 and G are applied to the code and to u instead of the values. This is
  attention from the positions of a map to the positions of the neighbouring maps, without a convolution
  (``MapContext``).
- Both passes process a few frames of a clip at a time, and only the small matrices of these frames are in memory. The
  hand-written backward saves only the inputs and recomputes the matrices.

Letters: N x T x H x W positions, P of them in a chunk; L heads; K key, V value and D latent channels.
"""

from math import prod

import torch
from torch import Tensor

from .rsa_forms import Chunk, ConvolvedContext, MapContext, Relation

# The size of a chunk's small matrices, by type of device. On a CPU, larger chunks leave the cache and take more memory.
# A GPU needs many positions at a time; its value was not measured.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
CHUNK_KERNELS = 4  # a chunk has at least as many positions as 4 kernels, because each chunk lays out the weights
MAPS_PAY = 2  # MapContext must need 2 times less arithmetic, because its products are smaller
MAP_BYTES = 16 << 20  # limit for the weights that MapContext expands
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

    Parameters that the variant does not use are ``None``: H1 and P1 if kernel_type is "V", P1 if it is "R"; G and I if
    feat_type is "V", I if it is "R".

    Args: ``projected`` (N, T, H, W, L*K [+ K] + V); ``H2`` (D, 1, kT, kH, kW); ``H1`` (K*D, 1, kT, kH, kW);
        ``P1`` (1, K, D); ``G`` (V, 1, kT, kH, kW); ``I`` (1, V, V).

    Returns (N, T, H, W, V*L), channel v*L + l for head l, in the type of ``projected``. Gradients are of first order.
    """
    return torch.ops.rsa.fused(projected, H2, H1, P1, G, I, num_heads)


def why_not(device: torch.device, dtype: torch.dtype, kernel_type: str, feat_type: str) -> str | None:
    """Why this path cannot be used: always ``None``, because it takes every input."""
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
) -> Tensor:
    with torch.autocast(projected.device.type, enabled=False):
        sizes = _Sizes(projected, H2, H1, G, num_heads)
        queries, keys, values = sizes.parts(projected)
        y = projected.new_empty(*projected.shape[:4], sizes.value * num_heads)
        relation = Relation(None if keys is None else _unit(keys)[0], H1, P1)
        context = sizes.context(_unit(values)[0], H2, G, I)
        for chunk in sizes.chunks():
            at = chunk.clips, chunk.frames
            q = queries[at].flatten(0, 3)  # (P, L, K)
            part = y[at].view(-1, sizes.value, num_heads)  # (P, V, L)
            context.forward(relation.forward(q, chunk)[0], chunk, part)
            part *= _inverse_norm(q).mT  # the output is linear in q, so it can be divided by |q| instead of q
        return y


@_fused.register_fake
def _(projected, H2, H1, P1, G, I, num_heads):
    return projected.new_empty(*projected.shape[:4], _Sizes(projected, H2, H1, G, num_heads).value * num_heads)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient):
    tensors = ctx.saved_tensors
    present = iter(torch.ops.rsa.fused_backward(gradient, *tensors, ctx.num_heads))
    return *(None if x is None else next(present) for x in tensors), None


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
    num_heads: int,
) -> list[Tensor]:
    """The gradients of ``projected`` and of the parameters that are not ``None``, in the order of the arguments."""
    if not projected.numel():
        return [torch.zeros_like(x) for x in (projected, H2, H1, P1, G, I) if x is not None]
    with torch.autocast(projected.device.type, enabled=False):
        sizes = _Sizes(projected, H2, H1, G, num_heads)
        queries, keys, values = sizes.parts(projected)
        (k, k_scale), (v, v_scale) = (None, None) if keys is None else _unit(keys), _unit(values)
        relation, context = Relation(k, H1, P1), sizes.context(v, H2, G, I)
        result = torch.empty_like(projected, memory_format=torch.contiguous_format)
        g_queries, g_keys, g_values = sizes.parts(result)
        for chunk in sizes.chunks():
            at = chunk.clips, chunk.frames
            q = queries[at].flatten(0, 3)  # (P, L, K)
            scale = _inverse_norm(q)
            g_y = (gradient[at].reshape(-1, sizes.value, num_heads) * scale.mT).to(q.dtype)  # (P, V, L)
            code, matrices = relation.forward(q, chunk)
            g_q = relation.backward(q, matrices, context.backward(code, g_y, chunk), chunk)
            g_queries[at] = _through_norm(g_q, q, scale).view_as(g_queries[at])
        if k is not None:
            g_keys.copy_(_through_norm(relation.g_k * k_scale, keys, k_scale))
        g_values.copy_(_through_norm(context.g_v * v_scale, values, v_scale))
        g_h2, g_g, g_i = context.gradients()
        pairs = zip((g_h2, *relation.gradients(), g_g, g_i), (H2, H1, P1, G, I), strict=True)
        # The memory is contiguous because the fake kernel says so, and torch.compile relies on that.
        return [result, *(x.new_empty(x.shape).copy_(g.reshape(x.shape)) for g, x in pairs if x is not None)]


@_fused_backward.register_fake
def _(gradient, projected, H2, H1, P1, G, I, num_heads):
    result = torch.empty_like(projected, memory_format=torch.contiguous_format)
    return [result, *(x.new_empty(x.shape) for x in (H2, H1, P1, G, I) if x is not None)]


class _Sizes:
    """The sizes of a call, the form of the context that is faster for them, and the chunks."""

    def __init__(self, projected, H2, H1, G, num_heads):
        self.positions = projected.shape[:4]
        self.latent, self.heads = H2.shape[0], num_heads
        self.key = self.latent if H1 is None else H1.shape[0] // self.latent
        self.keys = 0 if H1 is None else self.key
        self.value = value = projected.shape[4] - num_heads * self.key - self.keys
        area, (taps, *kernel) = prod(self.positions[2:]), H2.shape[2:]
        columns, self.kernel = self.latent + (0 if G is None else value), H2.shape[2:].numel()
        by_maps = num_heads * (self.latent + (value if G is None else 3 * value)) * area  # multiply-adds / taps
        laid_out = 4 * area**2 * taps * columns  # bytes
        self.by_maps = by_maps * MAPS_PAY < value * columns * prod(kernel) and laid_out < MAP_BYTES
        context_matrix = 2 * num_heads * taps * area if self.by_maps else value * columns
        matrix_bytes = projected.element_size() * max(self.keys * self.latent, context_matrix)  # of a position
        room = CHUNK_BYTES.get(projected.device.type, CHUNK_BYTES["cpu"]) / matrix_bytes  # positions
        self.chunk_positions = max(room, CHUNK_KERNELS * self.kernel)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(N, T, H, W, E) -> queries (N, T, H, W, L, K), keys (N, T, H, W, K), values (N, T, H, W, V)."""
        q, k, v = x.split([self.heads * self.key, self.keys, self.value], dim=-1)
        return q.unflatten(-1, (self.heads, self.key)), k if self.keys else None, v

    def context(self, v: Tensor, H2: Tensor, G: Tensor | None, I: Tensor | None) -> ConvolvedContext | MapContext:
        return (MapContext if self.by_maps else ConvolvedContext)(v, H2, G, I)

    def chunks(self):
        """Slices of frames of one clip, or of whole clips, whose matrices take about CHUNK_BYTES."""
        n, t, h, w = self.positions
        room = max(1, round(self.chunk_positions / max(1, h * w)))  # frames
        clips, frames = _even(n, max(1, room // max(1, t))), _even(t, room)
        for clip in range(0, n, clips):
            for start in range(0, t, frames):
                yield Chunk(slice(clip, min(n, clip + clips)), slice(start, min(t, start + frames)))


def _even(length: int, most: int) -> int:
    """Cut ``length`` into as few equal parts of at most ``most`` as possible; returns the size of a part."""
    parts = max(1, -(-length // most))
    return max(1, -(-length // parts))


def _inverse_norm(x: Tensor) -> Tensor:
    """1 / |x| over the last dimension, which becomes 1, in float32 or wider."""
    return (_sum_of_products(x, x) + EPSILON).rsqrt()  # epsilon as released


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / |x| over the last dimension, in the type of x; and 1 / |x|."""
    scale = _inverse_norm(x)
    return (x * scale).to(x.dtype), scale


def _through_norm(gradient: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """The gradient of x from ``gradient`` = ``scale`` * (the gradient of x / |x|), over the last dimension.

    ``scale`` is 1 / |x|.
    """
    gradient, x = gradient.to(scale.dtype), x.to(scale.dtype)
    return torch.addcmul(gradient, x, _sum_of_products(gradient, x) * scale.square(), value=-1)


def _sum_of_products(x: Tensor, y: Tensor) -> Tensor:
    """The sum over the last dimension, which becomes 1, in float32 or wider.

    A matrix product with ones sums short rows faster than ``sum``.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    products = x.to(wide) * y.to(wide)
    return products @ products.new_ones(products.shape[-1], 1)
