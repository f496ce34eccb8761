"""Temporal interlacing (TIN, AAAI 2020, arXiv 2001.06499) in plain PyTorch.

Groups of channels move along time by learned fractions of frames. Letters: N videos, T frames, C channels, of which
the first f move in G = 4 groups of c.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

GROUPS = 4  # their offsets are b1, b2, -b1, -b2, and their weights w1, w2, w1, w2


class OffsetNet(nn.Module):
    """The offsets (b1, b2) of a video in frames, between -2 and 2 for any T. ``(N, f, T) -> (N, 2)``.

    The two linear layers act on the time axis. As released, the last bias is 0.5108, so offsets start near half a
    frame.
    """

    def __init__(self, channels: int, num_segments: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, 1, 3, padding=1)
        self.fc1 = nn.Linear(num_segments, num_segments)
        self.fc2 = nn.Linear(num_segments, 2)
        nn.init.constant_(self.fc2.bias, 0.5108)

    def forward(self, pooled: Tensor) -> Tensor:
        y = self.fc2(self.fc1(self.conv(pooled).squeeze(1)).relu())
        return 4 * (y.sigmoid() - 0.5)


class WeightNet(nn.Module):
    """The weights (w1, w2) of each frame, between 0 and 2. ``(N, f, T) -> (N, 2, T)``. They start near 1."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, 2, 3, padding=1)
        nn.init.zeros_(self.conv.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        return 2 * self.conv(pooled).sigmoid()


class TIN(nn.Module):
    r"""Interlace the first ``1/shift_div`` of the channels along time. The other channels do not change.

    .. math::
        y_{nt} = w_{ngt} \sum_s M_{ngts}\, x_{ns} \qquad M_{ngts} = \max(0, 1 - |t - s - b_{ng}|)

    The four groups of these channels have the offsets (b1, b2, -b1, -b2) and the weights (w1, w2, w1, w2). A positive
    offset moves features to later frames. Frames outside the clip are zero, and the rest is not normalised again. The
    weight is the one of the output frame.

    As released, the derivative by an offset that is an integer is the one from the right.

    Args:
        channels: C of the input.
        num_segments: T. The shapes of the offset net's parameters depend on it.
        shift_div: ``C // shift_div`` channels are interlaced.

    Shapes: ``(N*T, C, H, W) -> (N*T, C, H, W)``.

    Errors: ``ValueError`` if the number of interlaced channels is not a multiple of 4 or is 0, or if the number of
    frames is not a multiple of ``num_segments``.

    Source: the paper and the authors' release (github.com/deepcs233/TIN).
    """

    sized_by_segments: ClassVar = {"offset.fc1.weight": 1}

    def __init__(self, channels: int, num_segments: int, shift_div: int = 4):
        super().__init__()
        self.num_segments, self.moving = num_segments, channels // shift_div
        if self.moving == 0 or self.moving % GROUPS:
            raise ValueError(
                f"{channels=} with {shift_div=} gives {self.moving} interlaced channels, which must be a multiple of 4"
            )
        self.offset = OffsetNet(self.moving, num_segments)
        self.weight = WeightNet(self.moving)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % self.num_segments:
            raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {self.num_segments}")
        # The nets and the matrices are tiny, so they keep the precision of the weights.
        pooled = x[:, : self.moving].mean((2, 3), dtype=self.offset.fc1.weight.dtype)
        pooled = pooled.unflatten(0, (-1, self.num_segments)).mT  # (N, f, T)
        with torch.autocast(x.device.type, enabled=False):
            offsets, weights = self.offset(pooled), self.weight(pooled)  # (N, 2), (N, 2, T)
            matrices = interpolation(torch.cat([offsets, -offsets], dim=1), self.num_segments)
            matrices = (matrices * weights.repeat(1, 2, 1)[..., None]).to(x.dtype)  # (N, G, T, T)
            # Compilers and exporters get plain operations. A count of multiply-adds, which is a torch.jit trace, counts
            # nothing here, like those that are published.
            if torch.compiler.is_compiling():
                return _interlaced_by_cat(x, matrices, self.moving)
            return _Interlace.apply(x, matrices, self.moving)

    def extra_repr(self) -> str:
        return f"num_segments={self.num_segments}, moving={self.moving}"


def interpolation(offsets: Tensor, num_segments: int) -> Tensor:
    """The matrices that move frames by ``offsets``: (N, G) -> (N, G, T, T), output frame before input frame."""
    frames = torch.arange(num_segments, device=offsets.device)
    floor = offsets.floor()
    fraction = (offsets - floor)[..., None, None]
    moved = frames[:, None] - frames - floor[..., None, None]  # (N, G, T, T): t - s - floor(b)
    return (1 - fraction) * (moved == 0) + fraction * (moved == 1)


class _Interlace(torch.autograd.Function):
    """``y[n,t,g] = sum_s M[n,g,t,s] x[n,s,g]`` for the first ``moving`` channels, in a copy of x."""

    @staticmethod
    def forward(ctx, x: Tensor, matrices: Tensor, moving: int) -> Tensor:
        ctx.save_for_backward(x, matrices)
        ctx.moving = moving
        y, pixels_first = x.clone(), x.stride(1) == 1  # the latter is channels_last memory
        before = _grouped(x[:, :moving], matrices, pixels_first)
        after = _grouped(y[:, :moving], matrices, pixels_first)
        after.copy_((matrices @ before.flatten(3)).view(before.shape))
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, matrices = ctx.saved_tensors
        moving, of_x, of_matrices = ctx.moving, None, None
        if ctx.needs_input_grad[0]:
            of_x = _Interlace.apply(gradient, matrices.mT, moving)
        if ctx.needs_input_grad[1]:
            after, before = (_grouped(y[:, :moving], matrices, x.stride(1) == 1).flatten(3) for y in (gradient, x))
            of_matrices = after @ before.mT  # (N, G, T, T)
        return of_x, of_matrices, None


def _grouped(x: Tensor, matrices: Tensor, pixels_first: bool) -> Tensor:
    """A view of moving frames: (N*T, f, H, W) -> (N, G, T, c, H, W), or (N, G, T, H, W, c) if ``pixels_first``."""
    clips = x.unflatten(0, (-1, matrices.shape[-1])).unflatten(2, (GROUPS, -1)).transpose(1, 2)
    return clips.movedim(3, -1) if pixels_first else clips


def _interlaced_by_cat(x: Tensor, matrices: Tensor, moving: int) -> Tensor:
    clips = _grouped(x[:, :moving], matrices, pixels_first=False)
    moved = torch.einsum("ngts,ngschw->ntgchw", matrices, clips).flatten(2, 3).flatten(0, 1)  # (N*T, f, H, W)
    return torch.cat([moved, x[:, moving:]], dim=1)
