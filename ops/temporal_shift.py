"""Temporal shift (TSM, ICCV 2019, section 3), bidirectional, as used in SDA-TSM."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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
        fold = self.fold(x)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # plain operations for compilers and exporters
            return _shifted_by_cat(x, self.num_segments, fold)
        return _Shift.apply(x, self.num_segments, fold, False)

    def fold(self, x: Tensor) -> int:
        """The number of channels that move in one direction.

        Errors: ``ValueError`` if the number of frames is not a multiple of ``num_segments``.
        """
        if x.shape[0] % self.num_segments:
            raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {self.num_segments}")
        return x.shape[1] // self.fold_div

    def extra_repr(self) -> str:
        return f"num_segments={self.num_segments}, fold_div={self.fold_div}"


class ShiftedConv2d(nn.Conv2d):
    """A convolution of shifted frames, ``conv(TemporalShift(num_segments, fold_div)(x))``, as in TSM's bottlenecks.

    On a CPU, a 1x1 convolution of float32 frames in channels_last memory makes no shifted copy of the frames. It is a
    matrix product, and the channels that shift are multiplied in the memory of the neighbouring frame. Otherwise the
    frames are shifted first.

    Args: ``conv`` is the convolution, whose weight and bias the module takes over; the others are those of
        ``TemporalShift``.

    Shapes: ``(N*T, C, H, W) -> (N*T, C', H', W')`` with T = ``num_segments``.

    Errors: the errors of ``TemporalShift``.
    """

    not_in_imagenet = ()  # an ImageNet weight of the convolution fits

    def __init__(self, conv: nn.Conv2d, num_segments: int, fold_div: int = 8):
        settings = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
        with torch.device("meta"):  # without memory and random numbers
            super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, bias=False, **settings)
        self.weight, self.bias = conv.weight, conv.bias
        self.shift = TemporalShift(num_segments, fold_div)

    def forward(self, x: Tensor) -> Tensor:
        if self._multiplies(x):
            frames = self.shift.num_segments
            fold = self.shift.fold(x)
            rows = x.permute(0, 2, 3, 1).reshape(-1, frames, x.shape[2] * x.shape[3], x.shape[1])  # (N, T, H*W, C)
            y = _ShiftedProduct.apply(rows, self.weight.flatten(1), fold)  # (N, T, H*W, C')
            return y.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)  # (N*T, C', H, W), channels_last
        return super().forward(self.shift(x))

    def _multiplies(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.is_contiguous(memory_format=torch.channels_last)
            and self.kernel_size == self.stride == (1, 1)
            and self.groups == 1
            and self.bias is None
            and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing())
        )


class _ShiftedProduct(torch.autograd.Function):
    """(N, T, S, C) shifted over T, times a weight (C', C) -> (N, T, S, C')."""

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, fold: int) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.fold = fold
        y = rows.new_empty(*rows.shape[:3], len(weight))
        still = slice(2 * fold, None)
        torch.mm(rows.flatten(0, 2)[:, still], weight[:, still].T, out=y.flatten(0, 2))
        for clip, result in zip(rows, y, strict=True):
            for channels, source, target, _ in _moves(fold):
                result[target].flatten(0, 1).addmm_(clip[source].flatten(0, 1)[:, channels], weight[:, channels].T)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (rows, weight), fold = ctx.saved_tensors, ctx.fold
        gradient = gradient.contiguous()
        still = slice(2 * fold, None)
        g_rows, g_weight = torch.empty_like(rows), torch.zeros_like(weight)
        flat = gradient.flatten(0, 2)
        g_rows.flatten(0, 2)[:, still].addmm_(flat, weight[:, still], beta=0)
        g_weight[:, still] = flat.T @ rows.flatten(0, 2)[:, still]
        for clip, g_clip, g in zip(rows, g_rows, gradient, strict=True):
            for channels, source, target, end in _moves(fold, back=True):
                moved = g[source].flatten(0, 1)
                g_clip[target].flatten(0, 1)[:, channels].addmm_(moved, weight[:, channels], beta=0)
                g_clip[end, :, channels] = 0
                g_weight[:, channels].addmm_(moved.T, clip[target].flatten(0, 1)[:, channels])
        return g_rows, g_weight, None


def _moves(fold: int, back: bool = False) -> tuple[tuple[slice, slice, slice, int], ...]:
    """The two shifts, or the opposite ones: channels, the frames that they come from, the frames that see them.

    The last number is the frame at the end of the clip that sees none.
    """
    future, past = slice(0, fold), slice(fold, 2 * fold)
    if back:
        future, past = past, future
    later, earlier = slice(1, None), slice(None, -1)
    return (future, later, earlier, -1), (past, earlier, later, 0)


class _Shift(torch.autograd.Function):
    """The shift with one copy of the features. Its gradient is the opposite shift, also with one copy."""

    @staticmethod
    def forward(ctx, x: Tensor, num_segments: int, fold: int, back: bool) -> Tensor:
        ctx.arguments = num_segments, fold, not back
        y = x.clone()  # one contiguous copy of everything is faster than a copy of only the channels that stay
        before, after = x.unflatten(0, (-1, num_segments)), y.unflatten(0, (-1, num_segments))  # (N, T, C, H, W)
        for channels, source, target, end in _moves(fold, back):
            after[:, target, channels] = before[:, source, channels]
            after[:, end, channels] = 0
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
