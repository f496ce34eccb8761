"""Temporal shift (TSM, ICCV 2019, section 3), bidirectional, as used in SDA-TSM."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TemporalShift(nn.Module):
    """Move the first ``1/fold_div`` of the channels one frame back and the next ``1/fold_div`` one frame forward.

    Zeros are shifted in at the ends of the clip. The other channels do not change. There are no parameters.

    Shapes: ``(N*T, C, H, W) -> (N*T, C, H, W)`` with T = ``num_segments``.

    Errors: ``ValueError`` if the number of frames is not a multiple of ``num_segments``.
    """

    def __init__(self, num_segments: int, fold_div: int = 8):
        super().__init__()
        if num_segments < 1 or fold_div < 2:
            raise ValueError(f"num_segments={num_segments} must be at least 1 and fold_div={fold_div} at least 2")
        self.num_segments, self.fold_div = num_segments, fold_div

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % self.num_segments:
            raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {self.num_segments}")
        fold = x.shape[1] // self.fold_div
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # plain operations for compilers and exporters
            return _shifted_by_cat(x, self.num_segments, fold)
        return _Shift.apply(x, self.num_segments, fold, False)

    def extra_repr(self) -> str:
        return f"num_segments={self.num_segments}, fold_div={self.fold_div}"


class _Shift(torch.autograd.Function):
    """The shift with one copy of the features. Its gradient is the opposite shift, also with one copy."""

    @staticmethod
    def forward(ctx, x: Tensor, num_segments: int, fold: int, back: bool) -> Tensor:
        ctx.arguments = num_segments, fold, not back
        y = x.clone()  # one contiguous copy of everything is faster than a copy of only the channels that stay
        before, after = x.unflatten(0, (-1, num_segments)), y.unflatten(0, (-1, num_segments))  # (N, T, C, H, W)
        future, past = slice(0, fold), slice(fold, 2 * fold)
        if back:
            future, past = past, future
        after[:, :-1, future] = before[:, 1:, future]  # frame t sees t + 1; zeros enter at the end
        after[:, -1, future] = 0
        after[:, 1:, past] = before[:, :-1, past]  # frame t sees t - 1; zeros enter at the start
        after[:, 0, past] = 0
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _Shift.apply(gradient, *ctx.arguments), None, None, None


def _shifted_by_cat(x: Tensor, num_segments: int, fold: int) -> Tensor:
    x = x.unflatten(0, (-1, num_segments))  # (N, T, C, H, W)
    future, past, still = x.split([fold, fold, x.shape[2] - 2 * fold], dim=2)
    future = F.pad(future[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))
    past = F.pad(past[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat([future, past, still], dim=2).flatten(0, 1)  # (N*T, C, H, W)
