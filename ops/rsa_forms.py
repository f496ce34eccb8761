"""The two halves of RSA as ``rsa_fused`` computes them: the relation of the keys and the context of the values.

An object of these classes is used for one call of the operator. It gets the positions in chunks of frames and sums the
gradients of its input and parameters over the chunks.

Letters: N x T x H x W positions, P of them in a chunk; L heads; K key, V value and D latent channels.
"""

from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 16  # outputs that a convolution computes together


class Chunk(NamedTuple):
    clips: slice
    frames: slice

    @property
    def length(self) -> int:
        """The number of frames that the chunk takes from each clip."""
        return self.frames.stop - self.frames.start


class Relation:
    """code = q (X^K * H1 + P1) from keys (N, T, H, W, K). If there is no H1, the code is q."""

    def __init__(self, k: Tensor | None, H1: Tensor | None, P1: Tensor | None):
        self.matrices = None
        if H1 is not None:
            weight, bias = H1.squeeze(1).to(k.dtype), None if P1 is None else P1.flatten().to(k.dtype)
            self.matrices = _Matrices(k, weight, bias)

    def forward(self, q: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """(P, L, K) -> the code (P, L, D), and the matrices (P, K, D) for the backward pass."""
        if self.matrices is None:
            return q, None
        matrices = self.matrices.forward(chunk)
        return torch.bmm(q, matrices), matrices

    def backward(self, q: Tensor, matrices: Tensor | None, g_code: Tensor, chunk: Chunk) -> Tensor:
        if self.matrices is None:
            return g_code
        self.matrices.backward(torch.bmm(q.mT, g_code), chunk)
        return torch.bmm(g_code, matrices.mT)

    @property
    def g_k(self) -> Tensor:
        return self.matrices.g_x

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of H1 and P1."""
        return (None, None) if self.matrices is None else (self.matrices.g_weight, self.matrices.g_bias)


class ConvolvedContext:
    """u = code (H2^T X^V)^T and y = u (I + X^V * G), by convolving the values (N, T, H, W, V) with H2 and G."""

    def __init__(self, v: Tensor, H2: Tensor, G: Tensor | None, I: Tensor | None):
        self.latent, value = H2.shape[0], v.shape[4]
        self.mixes = G is not None
        # All channels of the values share H2 and G. Each channel is still a group, because the matrix of a position is
        # then contiguous.
        weight = (H2 if G is None else torch.cat([H2, G])).squeeze(1).to(v.dtype).repeat(value, 1, 1, 1)
        bias = None if I is None else F.pad(I[0].to(v.dtype), (self.latent, 0)).flatten()
        self.matrices = _Matrices(v, weight, bias, shared=True)

    def forward(self, code: Tensor, chunk: Chunk) -> Tensor:
        """(P, L, D) -> (P, L, V)."""
        context, mixing = self._context_and_mixing(chunk)
        u = torch.bmm(code, context.mT)
        return torch.bmm(u, mixing) if self.mixes else u

    def backward(self, code: Tensor, g_y: Tensor, chunk: Chunk) -> Tensor:
        context, mixing = self._context_and_mixing(chunk)
        g_matrices = code.new_empty(*context.shape[:2], self.latent + mixing.shape[2])
        g_u = g_y
        if self.mixes:
            g_matrices[:, :, self.latent :] = torch.bmm(torch.bmm(code, context.mT).mT, g_y)
            g_u = torch.bmm(g_y, mixing.mT)  # (P, L, V)
        g_matrices[:, :, : self.latent] = torch.bmm(g_u.mT, code)
        g_code = torch.bmm(g_u, context)
        del context, mixing  # frees their memory before the next step needs as much
        self.matrices.backward(g_matrices, chunk)
        return g_code

    @property
    def g_v(self) -> Tensor:
        return self.matrices.g_x

    def gradients(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients of H2, G and I."""
        weight, bias = self.matrices.g_weight, self.matrices.g_bias
        weight = weight.unflatten(0, (self.g_v.shape[4], -1)).sum(0)
        identity = None if bias is None else bias.unflatten(0, (self.g_v.shape[4], -1))[:, self.latent :]
        return weight[: self.latent], weight[self.latent :] if self.mixes else None, identity

    def _context_and_mixing(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        matrices = self.matrices.forward(chunk)
        return matrices[:, :, : self.latent], matrices[:, :, self.latent :]


class MapContext:
    """Computes ``ConvolvedContext`` as attention: A = code H2^T, u = A X^V, Z = u (X^V)^T, y = u I + Z G.

    Each map of S = H*W positions attends to the kT maps around it. A row of A and Z has M = S*kT entries, one for each
    position of those maps. H2 and G are therefore expanded to one matrix for each position of the map, with zeros where
    the kernel does not reach. The products are batched over maps (B = N*frames of a chunk) or over the positions of a
    map.
    """

    def __init__(self, v: Tensor, H2: Tensor, G: Tensor | None, I: Tensor | None):
        self.v, self.H2, self.G, self.I = v, H2, G, None if I is None else I.to(v.dtype)
        self.kernel, self.area = H2.shape[2:], v.shape[2:4].numel()
        self.reach = _reach(v.shape[2:4], self.kernel[1:], v.device)
        self.g_v = self.g_h2 = self.g_g = self.g_identity = None

    # (S, M, D) and (S, M, V). They are expanded at first use, when the matrices of the relation are no longer in
    # memory.
    h2 = cached_property(lambda self: self._laid_out(self.H2))
    g = cached_property(lambda self: None if self.G is None else self._laid_out(self.G))

    def forward(self, code: Tensor, chunk: Chunk) -> Tensor:
        """(P, L, D) -> (P, L, V)."""
        around = self._around(chunk)  # (B, M, V)
        a = _by_place(self._maps(code), self.h2.mT)  # (B*L, S, M)
        u = torch.bmm(a.view(around.shape[0], -1, a.shape[2]), around)  # (B, L*S, V)
        if self.g is None:
            return self._positions(u)
        z = torch.bmm(u, around.mT).view_as(a)
        y = _by_place(z, self.g).view_as(u)
        return self._positions(y if self.I is None else y.baddbmm_(u, self.I.expand(u.shape[0], -1, -1)))

    def backward(self, code: Tensor, g_y: Tensor, chunk: Chunk) -> Tensor:
        around, code = self._around(chunk), self._maps(code)  # (B, M, V), (B*L, S, D)
        a = _by_place(code, self.h2.mT)  # (B*L, S, M)
        a_maps = a.view(around.shape[0], -1, a.shape[2])  # (B, L*S, M)
        g_y = self._maps(g_y)  # (B*L, S, V)
        g_u = g_y.view(around.shape[0], -1, g_y.shape[2])  # (B, L*S, V)
        if self.g is None:
            g_around = torch.bmm(a_maps.mT, g_u)
        else:
            u, g_y_maps = torch.bmm(a_maps, around), g_u
            z = torch.bmm(u, around.mT).view_as(a)
            self.g_g = _sum(self.g_g, torch.bmm(z.permute(1, 2, 0), g_y.transpose(0, 1)))  # (S, M, V)
            g_z = _by_place(g_y, self.g.mT).view_as(a_maps)
            g_u = torch.bmm(g_z, around)
            if self.I is not None:
                g_u.baddbmm_(g_y_maps, self.I.mT.expand(around.shape[0], -1, -1))
                self.g_identity = _sum(self.g_identity, torch.bmm(u.mT, g_y_maps).sum(0))
            g_around = torch.bmm(g_z.mT, u).baddbmm_(a_maps.mT, g_u)
        self._add_around(g_around, chunk)
        g_a = torch.bmm(g_u, around.mT).view_as(a)
        self.g_h2 = _sum(self.g_h2, torch.bmm(g_a.permute(1, 2, 0), code.transpose(0, 1)))  # (S, M, D)
        g_code = _by_place(g_a, self.h2)  # (B*L, S, D)
        return self._positions(g_code.view(around.shape[0], -1, g_code.shape[2]))

    def gradients(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self._gathered(self.g_h2), None if self.g is None else self._gathered(self.g_g), self.g_identity

    def _maps(self, x: Tensor) -> Tensor:
        """(P, L, C) -> (B*L, S, C): one map per head."""
        return x.reshape(-1, self.area, *x.shape[1:]).transpose(1, 2).contiguous().flatten(0, 1)

    def _positions(self, x: Tensor) -> Tensor:
        """(B, L*S, C) -> (P, L, C)."""
        return x.unflatten(1, (-1, self.area)).transpose(1, 2).flatten(0, 1)

    def _laid_out(self, weight: Tensor) -> Tensor:
        """(C, 1, kT, kH, kW) -> (S, M, C): for each position of a map, the weights of all positions around it."""
        taps = F.pad(weight.to(self.v.dtype).flatten(3), (0, 1))  # a last tap of zero, for positions out of reach
        taps = taps.permute(3, 1, 2, 0).flatten(1)  # (kH*kW + 1, kT*C)
        return taps[self.reach].view(self.area, -1, weight.shape[0])

    def _gathered(self, gradient: Tensor) -> Tensor:
        """The gradient of a weight (C, 1, kT, kH, kW) from the gradient of the output of ``_laid_out``."""
        kt, kh, kw = self.kernel
        # A matrix product sums in float32 or wider, and on a GPU in the same order every time.
        taps = F.one_hot(self.reach, kh * kw + 1)[:, : kh * kw].to(gradient.dtype)  # (S*S, kH*kW)
        gradient = taps.T @ gradient.reshape(taps.shape[0], -1)  # (kH*kW, kT*C)
        return gradient.view(kh, kw, 1, kt, -1).permute(4, 2, 3, 0, 1)

    def _around(self, chunk: Chunk) -> Tensor:
        """The values of the kT maps around each frame, zero outside the clip: (B, M, V)."""
        v, kt = self.v[chunk.clips], self.kernel[0]
        around = v.new_zeros(v.shape[0], chunk.length, *v.shape[2:4], kt, v.shape[4])
        for tap, source, target in _overlaps(chunk.frames, v.shape[1], kt):
            around[:, target, :, :, tap] = v[:, source]
        return around.flatten(0, 1).flatten(1, 3)

    def _add_around(self, g_around: Tensor, chunk: Chunk) -> None:
        """Add the gradient of ``_around``'s output to the gradient of the values."""
        if self.g_v is None:
            self.g_v = torch.zeros_like(self.v)
        g_v, kt = self.g_v[chunk.clips], self.kernel[0]
        g_around = g_around.view(g_v.shape[0], chunk.length, *g_v.shape[2:4], kt, g_v.shape[4])
        for tap, source, target in _overlaps(chunk.frames, g_v.shape[1], kt):
            g_v[:, source] += g_around[:, target, :, :, tap]


def _by_place(x: Tensor, matrices: Tensor) -> Tensor:
    """(B*L, S, C), (S, C, C') -> (B*L, S, C'): multiply each position of a map by its own matrix."""
    y = x.new_empty(*x.shape[:2], matrices.shape[2])
    torch.bmm(x.transpose(0, 1), matrices, out=y.transpose(0, 1))
    return y


def _reach(size: tuple[int, int], kernel: tuple[int, int], device: torch.device) -> Tensor:
    """(H*W*H*W): the index of the kernel's tap from one position to another, or kH*kW if no tap reaches it."""
    down, right = (torch.arange(length, device=device) for length in size)
    row = (down - down[:, None] + kernel[0] // 2)[:, None, :, None]  # (H, 1, H, 1)
    column = (right - right[:, None] + kernel[1] // 2)[:, None, :]  # (W, 1, W)
    inside = (row >= 0) & (row < kernel[0]) & (column >= 0) & (column < kernel[1])
    return torch.where(inside, row * kernel[1] + column, kernel[0] * kernel[1]).flatten()


class _Matrices:
    """A matrix (C, outputs) per position: x (N, T, H, W, C) convolved with ``weight`` (C*outputs, kT, kH, kW).

    Every channel is a group of the convolution. If ``shared``, all channels have the same weight.
    """

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, shared: bool = False):
        self.x, self.weight, self.bias, self.shared = x, _channels_last(weight), bias, shared
        self.g_x = self.g_weight = self.g_bias = None

    def forward(self, chunk: Chunk) -> Tensor:
        """(P, C, outputs)."""
        taps, used = self._taps(chunk)
        kernel, groups = self.weight.shape[2:], self.x.shape[4]
        y = F.conv2d(taps, self.weight[:, used], self.bias, padding=[k // 2 for k in kernel], groups=groups)
        return y.permute(0, 2, 3, 1).flatten(0, 2).unflatten(1, (groups, -1))

    def backward(self, gradient: Tensor, chunk: Chunk) -> None:
        """Add the contribution of a gradient (P, C, outputs) to the gradients of x, weight and bias."""
        if self.g_x is None:
            self.g_x, self.g_weight = torch.zeros_like(self.x), torch.zeros_like(self.weight)
        if self.bias is not None:
            self.g_bias = _sum(self.g_bias, gradient.flatten(1).sum(0))
        taps, used = self._taps(chunk)
        h, w, channels = self.x.shape[2:]
        gradient = gradient.view(-1, h, w, self.weight.shape[0]).permute(0, 3, 1, 2)  # (N*frames, C*outputs, H, W)
        weight, padding = self.weight[:, used], [k // 2 for k in self.weight.shape[2:]]
        self.g_weight[:, used] += torch.nn.grad.conv2d_weight(
            taps, weight.shape, gradient, padding=padding, groups=channels
        )
        self._backward_to_x(gradient, weight, used.start, chunk)

    def _backward_to_x(self, gradient: Tensor, weight: Tensor, first_tap: int, chunk: Chunk) -> None:
        """Add the gradient of x from a gradient (N*frames, C*outputs, H, W) and the weight of the taps in use.

        This is a convolution with the flipped kernel, and its outputs are the kT taps. So few outputs would leave most
        lanes of the processor idle. Therefore blocks of the kernel's rows are also outputs, and are added to shifted
        rows of the result.
        """
        (h, channels), (kt, kh, kw) = self.x.shape[2::2], weight.shape[1:]
        blocks = min(kh, max(1, LANES // kt))
        rows = -(-kh // blocks)  # of a block
        blocks = -(-kh // rows)
        groups = channels
        if self.shared:  # channels become images; without groups a convolution is faster
            gradient = _channels_last(gradient.unflatten(1, (channels, -1)).flatten(0, 1))
            weight, groups = weight[: len(weight) // channels], 1
        turned = F.pad(weight, (0, 0, 0, blocks * rows - kh)).view(groups, -1, kt, blocks, rows, kw)
        turned = _channels_last(turned.permute(0, 2, 3, 1, 4, 5).flip(4, 5).flatten(0, 2))  # (groups*kT*blocks, ..)
        parts = F.conv2d(gradient, turned, padding=(rows - 1, kw // 2), groups=groups)
        parts = parts.unflatten(1, (-1, kt, blocks)).unflatten(0, (-1, channels // groups)).flatten(1, 2)
        g_x = self.g_x[chunk.clips]
        parts = parts.permute(0, 4, 5, 1, 2, 3).unflatten(0, (len(g_x), -1))  # (N, frames, .., W, C, kT, blocks)
        for tap, source, target in _overlaps(chunk.frames, self.x.shape[1], self.weight.shape[1]):
            for block in range(blocks):
                shift = kh // 2 - rows * block
                first, last = max(0, -shift), min(h, h + rows - 1 - shift)
                if first < last:
                    part = parts[:, target, first + shift : last + shift, :, :, tap - first_tap, block]
                    g_x[:, source, first:last] += part  # (N, frames, rows of the map, W, C)

    def _taps(self, chunk: Chunk) -> tuple[Tensor, slice]:
        """The neighbouring frames as channels (N*frames, C*taps, H, W), channels_last; and the taps that are used."""
        x = self.x[chunk.clips]
        overlaps = list(_overlaps(chunk.frames, x.shape[1], self.weight.shape[1]))
        taps = x.new_zeros(x.shape[0], chunk.length, *x.shape[2:], len(overlaps))
        for i, (_, source, target) in enumerate(overlaps):
            taps[:, target, ..., i] = x[:, source]
        return taps.flatten(0, 1).flatten(3).permute(0, 3, 1, 2), slice(overlaps[0][0], overlaps[-1][0] + 1)


def _overlaps(places: slice, length: int, size: int):
    """For each tap of a kernel: (tap, the places that it reads, the ones of ``places`` that need them).

    ``length`` is the number of frames of a clip. Places outside the clip are left out.
    """
    for tap in range(size):
        shift = tap - size // 2
        first, last = max(places.start, -shift), min(places.stop, length - shift)
        if first < last:
            yield tap, slice(first + shift, last + shift), slice(first - places.start, last - places.start)


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _sum(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)
