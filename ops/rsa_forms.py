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
    """Frames of one clip, or all frames of several clips. Its positions are therefore adjacent in memory."""

    clips: slice
    frames: slice

    @property
    def length(self) -> int:
        """The number of frames that the chunk takes from each clip."""
        return self.frames.stop - self.frames.start


class Relation:
    """code = q (X^K * H1 + P1) from keys (N, T, H, W, K). If there is no H1, the code is q."""

    def __init__(self, k: Tensor | None, H1: Tensor | None, P1: Tensor | None):
        self.bias = None if P1 is None else P1.flatten().to(k.dtype)
        self.matrices = None if H1 is None else _Matrices(k, H1.squeeze(1).to(k.dtype))
        self.g_p1 = None

    def forward(self, q: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """(P, L, K) -> the code (P, L, D), and the matrices (P, K, D) for the backward pass."""
        if self.matrices is None:
            return q, None
        matrices = self.matrices.forward(chunk, self.bias)
        return torch.bmm(q, matrices), matrices

    def backward(self, q: Tensor, matrices: Tensor | None, g_code: Tensor, chunk: Chunk) -> Tensor:
        """The gradient of q. The gradient of the matrices overwrites them."""
        if self.matrices is None:
            return g_code
        g_q = torch.bmm(g_code, matrices.mT)
        torch.bmm(q.mT, g_code, out=matrices)
        if self.bias is not None:
            self.g_p1 = _sum(self.g_p1, q.flatten(0, 1).T @ g_code.flatten(0, 1))
        self.matrices.backward(matrices, chunk)
        return g_q

    @property
    def g_k(self) -> Tensor:
        return self.matrices.g_x

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of H1 and P1."""
        return (None, None) if self.matrices is None else (self.matrices.g_weight, self.g_p1)


class ConvolvedContext:
    """u = code (H2^T X^V)^T and y = u (I + X^V * G), by convolving the values (N, T, H, W, V) with H2 and G."""

    def __init__(self, v: Tensor, H2: Tensor, G: Tensor | None, I: Tensor | None):
        self.latent, self.mixes = H2.shape[0], G is not None
        self.I = None if I is None else I[0].to(v.dtype)
        weight = (H2 if G is None else torch.cat([H2, G])).squeeze(1).to(v.dtype)
        self.matrices, self.g_identity = _Matrices(v, weight, shared=True), None

    def forward(self, code: Tensor, chunk: Chunk, y: Tensor) -> None:
        """Write y (P, V, L), computed from the code (P, L, D)."""
        _, context, mixing = self._matrices(chunk)
        if self.mixes:
            torch.bmm(mixing.mT, torch.bmm(context, code.mT), out=y)
        else:
            torch.bmm(context, code.mT, out=y)

    def backward(self, code: Tensor, g_y: Tensor, chunk: Chunk) -> Tensor:
        """The gradient of the code (P, L, D) from the gradient of y (P, V, L)."""
        matrices, context, mixing = self._matrices(chunk)
        g_u = g_y
        if self.mixes:
            u, g_u = torch.bmm(context, code.mT), torch.bmm(mixing, g_y)  # (P, V, L)
            mixing.copy_(torch.bmm(u, g_y.mT))  # the gradient of the matrices overwrites them
            if self.I is not None:
                self.g_identity = _sum(self.g_identity, mixing.sum(0))
        g_code = torch.bmm(g_u.mT, context)
        context.copy_(torch.bmm(g_u, code))
        self.matrices.backward(matrices, chunk)
        return g_code

    @property
    def g_v(self) -> Tensor:
        return self.matrices.g_x

    def gradients(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients of H2, G and I."""
        weight = self.matrices.g_weight
        return weight[: self.latent], weight[self.latent :] if self.mixes else None, self.g_identity

    def _matrices(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
        """Matrices (P, V, D [+ V]) and their two parts: the context (P, V, D) and the mixing (P, V, V)."""
        matrices = self.matrices.forward(chunk)
        context, mixing = matrices[:, :, : self.latent], matrices[:, :, self.latent :]
        if self.I is not None:
            mixing += self.I
        return matrices, context, mixing


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

    def forward(self, code: Tensor, chunk: Chunk, y: Tensor) -> None:
        """Write y (P, V, L), computed from the code (P, L, D)."""
        around = self._around(chunk)  # (B, M, V)
        a = _by_place(self._maps(code), self.h2.mT)  # (B*L, S, M)
        u = torch.bmm(a.view(around.shape[0], -1, a.shape[2]), around)  # (B, L*S, V)
        if self.g is None:
            result = u
        else:
            z = torch.bmm(u, around.mT).view_as(a)
            result = _by_place(z, self.g).view_as(u)
            if self.I is not None:
                result.baddbmm_(u, self.I.expand(u.shape[0], -1, -1))
        y.copy_(self._positions(result).mT)

    def backward(self, code: Tensor, g_y: Tensor, chunk: Chunk) -> Tensor:
        """The gradient of the code (P, L, D) from the gradient of y (P, V, L)."""
        around, code = self._around(chunk), self._maps(code)  # (B, M, V), (B*L, S, D)
        a = _by_place(code, self.h2.mT)  # (B*L, S, M)
        a_maps = a.view(around.shape[0], -1, a.shape[2])  # (B, L*S, M)
        g_y = self._maps(g_y.mT)  # (B*L, S, V)
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


class _Taps(NamedTuple):
    """The neighbouring frames of a chunk as input channels of a convolution."""

    images: Tensor  # (N*frames, C*taps, H, W), or (C*N*frames, taps, H, W) if the weight is shared; channels_last
    overlaps: list[tuple[int, slice, slice]]  # the result of ``_overlaps``
    used: slice  # the taps of the kernel that reach a frame


class _Weight:
    """The weight (groups*outputs, taps, kH, kW) of the taps in use, as the convolutions of both passes need it.

    The gradient of the input is a convolution with the flipped weight ``turned``, whose outputs are the taps. So few
    outputs would leave most lanes of the processor idle. Therefore ``blocks`` blocks of ``rows`` rows of the kernel are
    outputs too, and are added to shifted rows of the result.
    """

    def __init__(self, weight: Tensor, groups: int):
        self.weight, self.groups = _channels_last(weight), groups
        taps, height, _ = weight.shape[1:]
        self.rows = -(-height // min(height, max(1, LANES // taps)))
        self.blocks = -(-height // self.rows)

    @cached_property
    def turned(self) -> Tensor:
        """(groups*taps*blocks, outputs, rows, kW). The forward pass does not need it."""
        taps, height, width = self.weight.shape[1:]
        turned = F.pad(self.weight, (0, 0, 0, self.blocks * self.rows - height))
        turned = turned.view(self.groups, -1, taps, self.blocks, self.rows, width)
        return _channels_last(turned.permute(0, 2, 3, 1, 4, 5).flip(4, 5).flatten(0, 2))


class _Matrices:
    """A matrix (C, outputs) for each position: x (N, T, H, W, C) convolved with a weight.

    Each channel has its own weight, and is a group of the convolution: ``weight`` is (C*outputs, kT, kH, kW). If
    ``shared``, all channels have the same weight (outputs, kT, kH, kW). The channels are then images of the batch,
    because a convolution without groups is faster. In memory, the channel is then the first dimension.
    """

    def __init__(self, x: Tensor, weight: Tensor, shared: bool = False):
        self.x = x.movedim(-1, 0).contiguous().movedim(0, -1) if shared else x
        self.weight, self.shared, self.groups = weight, shared, 1 if shared else x.shape[4]
        self.padding = [k // 2 for k in weight.shape[2:]]
        self.g_x = self.g_weight = self.taps = None
        self.weights: dict[tuple[int, int], _Weight] = {}

    def forward(self, chunk: Chunk, bias: Tensor | None = None) -> Tensor:
        """(P, C, outputs). If the weight is shared, the channel is the first dimension in memory."""
        self.taps = self._taps(chunk)
        weight = self._weight(self.taps.used)
        y = F.conv2d(self.taps.images, weight.weight, bias, padding=self.padding, groups=self.groups)
        y = y.permute(0, 2, 3, 1)  # (images, H, W, outputs or C*outputs)
        if self.shared:
            return y.view(self.x.shape[4], -1, y.shape[3]).transpose(0, 1)
        return y.view(-1, self.groups, y.shape[3] // self.groups)

    def backward(self, gradient: Tensor, chunk: Chunk) -> None:
        """Add the contribution of a gradient (P, C, outputs) to the gradients of x and weight.

        The chunk is that of the last call of ``forward``. In memory, the gradient is like the output of that call.
        """
        if self.g_x is None:
            self.g_x, self.g_weight = torch.zeros_like(self.x), torch.zeros_like(self.weight)
        taps, overlaps, used = self.taps
        weight = self._weight(used)
        gradient = gradient.transpose(0, 1) if self.shared else gradient
        gradient = gradient.view(len(taps), *taps.shape[2:], -1).permute(0, 3, 1, 2)  # (images, outputs, H, W)
        self.g_weight[:, used] += torch.nn.grad.conv2d_weight(
            taps, weight.weight.shape, gradient, padding=self.padding, groups=self.groups
        )
        padding = weight.rows - 1, self.padding[1]
        parts = F.conv2d(gradient, weight.turned, padding=padding, groups=self.groups).permute(0, 2, 3, 1)
        g_x = self.g_x[chunk.clips]
        parts = parts.unflatten(3, (self.groups, -1, weight.blocks))  # (images, .., W, groups, taps, blocks)
        if self.shared:
            parts = parts.squeeze(3).unflatten(0, (self.x.shape[4], len(g_x), -1)).permute(1, 2, 3, 4, 0, 5, 6)
        else:
            parts = parts.unflatten(0, (len(g_x), -1))  # (N, frames, .., W, C, taps, blocks)
        height = self.x.shape[2]
        for tap, source, target in overlaps:
            for block in range(weight.blocks):
                shift = self.padding[0] - weight.rows * block
                first, last = max(0, -shift), min(height, height + weight.rows - 1 - shift)
                if first < last:
                    part = parts[:, target, first + shift : last + shift, :, :, tap - used.start, block]
                    g_x[:, source, first:last] += part  # (N, frames, rows of the map, W, C)

    def _taps(self, chunk: Chunk) -> _Taps:
        x = self.x[chunk.clips]
        overlaps = list(_overlaps(chunk.frames, x.shape[1], self.weight.shape[1]))
        shape = len(x), chunk.length, *x.shape[2:4]
        if self.shared:
            images = x.new_zeros(x.shape[4], *shape, len(overlaps))
            by_position = images.permute(1, 2, 3, 4, 0, 5)  # (N, frames, H, W, C, taps)
            images = images.flatten(0, 2)
        else:
            by_position = x.new_zeros(*shape, x.shape[4], len(overlaps))
            images = by_position.flatten(0, 1).flatten(3)
        for i, (_, source, target) in enumerate(overlaps):
            by_position[:, target, ..., i] = x[:, source]
        return _Taps(images.permute(0, 3, 1, 2), overlaps, slice(overlaps[0][0], overlaps[-1][0] + 1))

    def _weight(self, used: slice) -> _Weight:
        key = used.start, used.stop
        if key not in self.weights:
            self.weights[key] = _Weight(self.weight[:, used], self.groups)
        return self.weights[key]


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
