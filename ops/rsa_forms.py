"""The two halves of RSA as ``rsa_fused`` computes them: the relation of the keys and the context of the values.

Each is made for one call of the operator, is given its positions a chunk of frames at a time, and collects the
gradients of its parameters over the chunks. Letters: N, T, H, W positions, of which a chunk has P; L heads, K key,
V value, D latent channels; R = kT*kH rows around a row, B rows of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 16  # outputs that a convolution computes together


class Relation:
    """X^K * H1 + P1: one (K, D) matrix a position, from keys (N, T, H, W, K)."""

    def __init__(self, H1: Tensor, P1: Tensor | None, key: int, latent: int, dtype: torch.dtype):
        self.key, self.latent = key, latent
        self.weight = _channels_last(H1.squeeze(1).to(dtype))  # (K*D, kT, kH, kW)
        self.bias = None if P1 is None else P1.flatten().to(dtype)
        self.g_weight = self.g_bias = None

    def forward(self, k: Tensor, frames: slice) -> Tensor:
        return _convolve(k, self.weight, self.bias, frames).unflatten(1, (self.key, self.latent))  # (P, K, D)

    def backward(self, k: Tensor, gradient: Tensor, g_k: Tensor, frames: slice) -> None:
        if self.bias is not None:
            self.g_bias = _sum(self.g_bias, gradient.sum(0))
        self.g_weight = _sum(self.g_weight, _convolve_backward(k, self.weight, gradient.flatten(1), g_k, frames))

    def gradients(self) -> tuple[Tensor, Tensor | None]:
        return self.g_weight, self.g_bias


class ConvolvedContext:
    """u = code (H2^T X^V)^T and y = u (I + X^V * G), by convolving the values with H2 and G."""

    def __init__(self, H2: Tensor, G: Tensor | None, I: Tensor | None, value: int, width: int, dtype: torch.dtype):
        self.value, self.latent = value, H2.shape[0]
        weight = (H2 if G is None else torch.cat([H2, G])).squeeze(1).to(dtype)
        self.columns = weight.shape[0]  # D + V
        self.mixes, self.has_identity = G is not None, I is not None
        # The channels of the values share H2 and G, yet are groups, so that a position's matrix lies in one piece.
        self.weight = _channels_last(weight.repeat(value, 1, 1, 1))  # (V*(D+V), kT, kH, kW)
        self.bias = F.pad(I[0].to(dtype), (self.latent, 0)).flatten() if self.has_identity else None
        self.g_weight = self.g_identity = None

    def matrices(self, v: Tensor, frames: slice) -> Tensor:
        return _convolve(v, self.weight, self.bias, frames).unflatten(1, (self.value, self.columns))  # (P, V, D+V)

    def forward(self, v: Tensor, code: Tensor, frames: slice) -> tuple[Tensor, Tensor]:
        matrices = self.matrices(v, frames)
        u = torch.bmm(code, matrices[:, :, : self.latent].transpose(1, 2))  # (P, L, V)
        return torch.bmm(u, matrices[:, :, self.latent :]) if self.mixes else u, matrices

    def backward(self, v, code, g_y, matrices, g_v, frames) -> Tensor:
        if matrices is None:
            matrices = self.matrices(v, frames)
        context, mixing = matrices[:, :, : self.latent], matrices[:, :, self.latent :]
        g_matrices = torch.empty_like(matrices)
        g_u = g_y
        if self.mixes:
            u = torch.bmm(code, context.transpose(1, 2))
            g_u = torch.bmm(g_y, mixing.transpose(1, 2))  # (P, L, V)
            g_mixing = torch.bmm(u.transpose(1, 2), g_y)  # (P, V, V)
            g_matrices[:, :, self.latent :] = g_mixing
            if self.has_identity:
                self.g_identity = _sum(self.g_identity, g_mixing.sum(0))
        g_matrices[:, :, : self.latent] = torch.bmm(g_u.transpose(1, 2), code)
        g_weight = _convolve_backward(v, self.weight, g_matrices.flatten(1), g_v, frames)
        self.g_weight = _sum(self.g_weight, g_weight.unflatten(0, (self.value, self.columns)).sum(0))
        return torch.bmm(g_u, context)  # (P, L, D)

    def gradients(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        g_h2, g_g = self.g_weight.split([self.latent, self.columns - self.latent])
        return g_h2, g_g if self.mixes else None, self.g_identity


class RowContext:
    """The same from a row of positions to the R rows around it: A = code H2, u = A X^V, Z = u (X^V)^T, y = u I + Z G.

    A row of A and Z holds the R*W positions of those rows, so H2 and G are laid out for each column of the map, with
    zeros where a position is farther than the kernel reaches. Batches are rows (B = N*T*H) or columns (W).
    """

    columns = 0  # nothing is kept for the backward pass

    def __init__(self, H2: Tensor, G: Tensor | None, I: Tensor | None, value: int, width: int, dtype: torch.dtype):
        self.H2, self.G, self.I = (x if x is None else x.to(dtype) for x in (H2, G, I))
        self.h2, self.g = (x if x is None else _laid_out(x, width) for x in (self.H2, self.G))  # (W, D or V, R*W)
        self.g_h2 = self.g_g = self.g_identity = None

    def forward(self, v: Tensor, code: Tensor, frames: slice) -> tuple[Tensor, None]:
        w = v.shape[3]
        rows = _rows_around(v, self.H2.shape[2:4], frames)  # (B, R*W, V)
        a = _by_column(_columns_of(code, w), self.h2)  # (B*L, W, R*W)
        u = torch.bmm(a.view(rows.shape[0], -1, a.shape[2]), rows)  # (B, L*W, V)
        if self.G is None:
            return _positions_of(u, w), None
        z = torch.bmm(u, rows.transpose(1, 2)).view_as(a)
        y = _by_column(z, self.g.transpose(1, 2)).view_as(u)
        return _positions_of(y if self.I is None else torch.baddbmm(y, u, self.I.expand(u.shape[0], -1, -1)), w), None

    def backward(self, v, code, g_y, _, g_v, frames) -> Tensor:
        w = v.shape[3]
        rows, code = _rows_around(v, self.H2.shape[2:4], frames), _columns_of(code, w)  # (B, R*W, V), (B*L, W, D)
        a = _by_column(code, self.h2)  # (B*L, W, R*W)
        a_rows = a.view(rows.shape[0], -1, a.shape[2])  # (B, L*W, R*W)
        g_y = _columns_of(g_y, w)  # (B*L, W, V)
        g_u = g_y.view(rows.shape[0], -1, g_y.shape[2])  # (B, L*W, V)
        if self.G is None:
            g_rows = torch.bmm(a_rows.transpose(1, 2), g_u)
        else:
            u, g_y_rows = torch.bmm(a_rows, rows), g_u
            z = torch.bmm(u, rows.transpose(1, 2)).view_as(a)
            g_g = torch.bmm(g_y.permute(1, 2, 0), z.transpose(0, 1))  # (W, V, R*W)
            self.g_g = _sum(self.g_g, _gathered(g_g, self.G.shape))
            g_z = _by_column(g_y, self.g).view_as(a_rows)
            g_u = torch.bmm(g_z, rows)
            if self.I is not None:
                g_u.baddbmm_(g_y_rows, self.I.transpose(1, 2).expand(rows.shape[0], -1, -1))
                self.g_identity = _sum(self.g_identity, torch.bmm(u.transpose(1, 2), g_y_rows).sum(0))
            g_rows = torch.bmm(g_z.transpose(1, 2), u).baddbmm_(a_rows.transpose(1, 2), g_u)
        _add_rows_around(g_v, g_rows, self.H2.shape[2:4], frames)
        g_a = torch.bmm(g_u, rows.transpose(1, 2)).view_as(a)
        g_h2 = torch.bmm(code.permute(1, 2, 0), g_a.transpose(0, 1))  # (W, D, R*W)
        self.g_h2 = _sum(self.g_h2, _gathered(g_h2, self.H2.shape))
        g_code = _by_column(g_a, self.h2.transpose(1, 2))  # (B*L, W, D)
        return _positions_of(g_code.view(rows.shape[0], -1, g_code.shape[2]), w)

    def gradients(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.g_h2, self.g_g, self.g_identity


def _columns_of(x: Tensor, width: int) -> Tensor:
    """(P, L, C) -> (B*L, W, C): a row of positions for each head."""
    return x.reshape(-1, width, *x.shape[1:]).transpose(1, 2).contiguous().flatten(0, 1)


def _positions_of(x: Tensor, width: int) -> Tensor:
    """(B, L*W, C) -> (P, L, C)."""
    return x.unflatten(1, (-1, width)).transpose(1, 2).flatten(0, 1)


def _by_column(x: Tensor, matrices: Tensor) -> Tensor:
    """(B*L, W, C), (W, C, C') -> (B*L, W, C'): each column has a matrix of its own."""
    y = x.new_empty(*x.shape[:2], matrices.shape[2])
    torch.bmm(x.transpose(0, 1), matrices, out=y.transpose(0, 1))
    return y


def _laid_out(weight: Tensor, width: int) -> Tensor:
    """(C, 1, kT, kH, kW) -> (W, C, R*W): for each column, the weight of every column of the rows around."""
    margin = width - 1 - weight.shape[4] // 2
    weight = F.pad(weight.flatten(1, 3), (margin, margin))  # (C, R, 2W-1), from W-1 columns before to W-1 after
    return weight.unfold(2, width, 1).flip(2).permute(2, 0, 1, 3).flatten(2)


def _gathered(gradient: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of a weight of ``shape`` (C, 1, kT, kH, kW) from that of ``_laid_out``."""
    c, _, kt, kh, kw = shape
    gradient = gradient.unflatten(2, (kt * kh, -1))  # (W, C, R, W)
    result = gradient.new_zeros(c, kt * kh, kw)
    for column in range(kw):
        offset = column - kw // 2
        if abs(offset) < gradient.shape[0]:
            result[:, :, column] = gradient.diagonal(offset, 0, 3).sum(-1)
    return result


def _rows_around(v: Tensor, kernel: torch.Size, frames: slice) -> Tensor:
    """(N, T, H, W, V) -> (B, R*W, V): the kT x kH rows around each row, zero outside."""
    n, t, h, w, c = v.shape
    rows = v.new_zeros(n, frames.stop - frames.start, h, *kernel, w, c)
    for tap, source, target in _overlaps(frames, t, kernel[0]):
        for row, above, here in _overlaps(slice(0, h), h, kernel[1]):
            rows[:, target, here, tap, row] = v[:, source, above]
    return rows.flatten(0, 2).flatten(1, 3)


def _add_rows_around(g_v: Tensor, g_rows: Tensor, kernel: torch.Size, frames: slice) -> None:
    """Add to the gradient of the values (N, T, H, W, V) that of ``_rows_around``."""
    n, t, h, w, c = g_v.shape
    g_rows = g_rows.view(n, frames.stop - frames.start, h, *kernel, w, c)
    for tap, source, target in _overlaps(frames, t, kernel[0]):
        for row, above, here in _overlaps(slice(0, h), h, kernel[1]):
            g_v[:, source, above] += g_rows[:, target, here, tap, row]


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, frames: slice) -> Tensor:
    """The values of ``frames``, each channel of x (N, T, H, W, C) a group: (P, C*outputs)."""
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    y = F.conv2d(_taps(x, weight.shape[1], frames), weight, bias, padding=padding, groups=x.shape[4])
    return y.permute(0, 2, 3, 1).flatten(0, 2)


def _convolve_backward(x: Tensor, weight: Tensor, gradient: Tensor, g_x: Tensor, frames: slice) -> Tensor:
    """Add to the gradient of x (N, T, H, W, C); return that of the weight (C*outputs, kT, kH, kW)."""
    n, t, h, w, groups = x.shape
    outputs, kt, kh, kw = weight.shape
    gradient = gradient.view(-1, h, w, outputs).permute(0, 3, 1, 2)  # (N*frames, C*outputs, H, W)
    # As a convolution with the kernel turned round, whose outputs are the kT taps. They alone would leave most of the
    # lanes idle, so that blocks of the kernel's rows are outputs too; the parts then fall on shifted rows.
    blocks = min(kh, max(1, LANES // kt))
    rows = -(-kh // blocks)  # of a block
    blocks = -(-kh // rows)
    turned = F.pad(weight, (0, 0, 0, blocks * rows - kh)).view(groups, -1, kt, blocks, rows, kw)
    turned = _channels_last(turned.permute(0, 2, 3, 1, 4, 5).flip(4, 5).flatten(0, 2))  # (C*kT*blocks, .., rows, kW)
    parts = F.conv2d(gradient, turned, padding=(rows - 1, kw // 2), groups=groups)
    parts = parts.permute(0, 2, 3, 1).unflatten(3, (groups, kt, blocks)).unflatten(0, (n, -1))
    for tap, source, target in _overlaps(frames, t, kt):
        for block in range(blocks):
            shift = kh // 2 - rows * block
            first, last = max(0, -shift), min(h, h + rows - 1 - shift)
            if first < last:
                part = parts[:, target, first + shift : last + shift, :, :, tap, block]
                g_x[:, source, first:last] += part  # (N, frames, rows of the map, W, C)
    taps = _taps(x, kt, frames)
    return torch.nn.grad.conv2d_weight(taps, weight.shape, gradient, padding=(kh // 2, kw // 2), groups=groups)


def _taps(x: Tensor, size: int, frames: slice) -> Tensor:
    """(N, T, H, W, C) -> (N*frames, C*kT, H, W) in channels_last memory: the kT frames around as channels."""
    n, t, h, w, c = x.shape
    taps = x.new_zeros(n, frames.stop - frames.start, h, w, c, size)
    for tap, source, target in _overlaps(frames, t, size):
        taps[:, target, ..., tap] = x[:, source]
    return taps.flatten(0, 1).flatten(3).permute(0, 3, 1, 2)


def _overlaps(places: slice, length: int, size: int):
    """For each tap of a kernel of ``size``: it, the places it reads for ``places``, and which of these can read."""
    for tap in range(size):
        shift = tap - size // 2
        first, last = max(places.start, -shift), min(places.stop, length - shift)
        if first < last:
            yield tap, slice(first + shift, last + shift), slice(first - places.start, last - places.start)


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _sum(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)
