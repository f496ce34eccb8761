"""RubiksShift-3D (RubiksNet, ECCV 2020, section 3) in plain PyTorch, with the forward and backward rules as released.

Each channel is moved by its own learnt offset in time, height and width. A move by a fraction interpolates linearly
between the two neighbours on each axis, so a moved map mixes 2 x 2 x 2 positions. Letters: N clips, T frames, C
channels; rows of the shift: T, H, W.

Two paths compute the same:

* windows: on a CPU, two depthwise convolutions. Their kernels hold the interpolation weights at the place of the
  offset. The first convolution is over (H, W). The second is over time: in channels_last memory, the frames
  ``(N*T, C, H, W)`` are also images ``(N, C, T, H*W)``. The largest offset gives the kernels' size.
* gather: on a GPU, for compilers and exporters, and for offsets of many pixels. One indexed read moves each channel by
  the whole part of its offset. One interpolation per axis does the rest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGEST_WINDOW = 3  # the kernels of the convolutions reach this far to each side; larger offsets are gathered
Stride = tuple[int, int, int]  # for T, H and W


class RubiksShift3D(nn.Module):
    r"""Moves channel c by the offset ``shift[:, c]`` = (T, H, W), and samples the result with a stride.

    With :math:`f = \lfloor s \rfloor`, :math:`w(0) = 1 - (s - f)`, :math:`w(1) = s - f` for each axis, and zeros
    outside the clip:

    .. math::
        y_{t,c,h,w} = \sum_{a,b,e \in \{0,1\}} w_T(a)\, w_H(b)\, w_W(e)\;
                      x_{t d_T + f_T + a,\; c,\; h d_H + f_H + b,\; w d_W + f_W + e}

    So a positive offset reads from later frames and from the lower right.

    The gradient of the input is the exact adjoint. The gradient of the shift follows the released rule. It is the
    derivative of the interpolation, but if the offset of an axis is a whole number f, the lower of its two positions is
    f - 1, for the gradients of all three axes. With ``normalize_grad``, the gradient of each channel is then divided by
    its norm. It is therefore a unit vector. It does not depend on the scale of the loss or on the batch size, and
    gradients of several micro-batches add up to more than one unit. Gradient scaling (fp16) makes it too small, because
    the scaler divides it by the scale.

    Three released parts are left out: the padding, which no released network uses; RubiksShift-2D; and the attention
    shift of the AQ networks.

    Args:
        channels: C.
        num_segments: T, the number of frames of a clip.
        stride: d for T, H and W, or one number for H and W.
        quantize: read one position only, at the rounded offset (round half up). The gradient of the shift is still that
            of the interpolation. The gradient of the input reads at the rounded negative offset, as released. It is the
            adjoint unless the fraction is exactly one half.
        normalize_grad: divide the gradient of each channel's shift by its norm.
        normalize_t_factor: factor of the time component before the division. ``"auto"`` is T / H. If it is negative,
            only the sign of the time component is left.

    Shapes: ``(N*T, C, H, W) -> (N*T', C, H', W')`` with ``D' = (D - 1) // d + 1``. Half precision is computed in
    float32.

    Errors: ``ValueError`` if a stride is below 1, or if the input has another C or a number of frames that is not a
    multiple of ``num_segments``.
    """

    optim_group = "rubiks"
    optim_params = {"shift": "shift"}  # the group "rubiks_shift": its own learning rate, no weight decay

    def __init__(
        self,
        channels: int,
        num_segments: int,
        stride: int | tuple[int, int, int] = 1,
        quantize: bool = False,
        normalize_grad: bool = True,
        normalize_t_factor: float | str = 1.0,
    ):
        super().__init__()
        stride = (1, stride, stride) if isinstance(stride, int) else tuple(stride)
        if channels < 1 or num_segments < 1 or len(stride) != 3 or min(stride) < 1:
            raise ValueError(f"{channels=}, {num_segments=} and the three strides {stride} must be at least 1")
        if isinstance(normalize_t_factor, str) and normalize_t_factor != "auto":
            raise ValueError(f"{normalize_t_factor=} must be a number or 'auto'")
        self.num_segments, self.stride, self.quantize = num_segments, stride, quantize
        self.normalize_grad, self.normalize_t_factor = normalize_grad, normalize_t_factor
        self.shift = nn.Parameter(torch.empty(3, channels).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.shift.shape[1]:
            raise ValueError(f"takes frames (N*T, {self.shift.shape[1]}, H, W), got {tuple(x.shape)}")
        if x.shape[0] % self.num_segments:
            raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {self.num_segments}")
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        frames, shift = x.to(dtype), self.shift.to(dtype)
        if torch.jit.is_tracing():  # a tracer cannot look into a function with its own backward
            y = _gathered(frames, shift, self.num_segments, self.stride, self.quantize)
        else:
            factor = self._t_factor(x.shape[2]) if self.normalize_grad else None
            y = _Shift.apply(frames, shift, self.num_segments, self.stride, self.quantize, factor)
        return y.to(x.dtype)

    def _t_factor(self, height: int) -> float:
        return self.num_segments / height if self.normalize_t_factor == "auto" else float(self.normalize_t_factor)

    def extra_repr(self) -> str:
        return f"{self.shift.shape[1]}, num_segments={self.num_segments}, stride={self.stride}"


class _Shift(torch.autograd.Function):
    """It saves its two inputs and recomputes the rest in the backward pass. ``t_factor=None`` does not normalise."""

    @staticmethod
    def forward(ctx, x, shift, num_segments, stride, quantize, t_factor):
        ctx.save_for_backward(x, shift)
        ctx.arguments, ctx.t_factor = (num_segments, stride, quantize), t_factor
        if windows := _windows(x, shift):
            return _convolved(x, shift, *ctx.arguments, windows)
        return _gathered(x, shift, *ctx.arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, shift = ctx.saved_tensors
        if windows := _windows(x, shift):
            grad_x, grad_shift = _convolved_backward(grad_y, x, shift, *ctx.arguments, windows)
        else:
            grad_x, grad_shift = _gathered_backward(grad_y, x, shift, *ctx.arguments)
        if ctx.t_factor is not None:
            grad_shift = _normalized(grad_shift, ctx.t_factor)
        return grad_x, grad_shift, None, None, None, None


def _normalized(gradient: Tensor, t_factor: float) -> Tensor:
    """The released normalisation of the gradient (3, C)."""
    if t_factor < 0:
        return torch.cat([gradient[:1].sign(), torch.zeros_like(gradient[1:])])
    gradient = torch.cat([t_factor * gradient[:1], gradient[1:]])
    norm = gradient.norm(dim=0)
    return gradient / torch.where(norm > 0, norm, 1)


def _interpolation(shift: Tensor, quantize: bool = False) -> tuple[Tensor, Tensor]:
    """(first position, weight of the next position), both (3, C). The first position is a whole number."""
    first = shift.floor()
    rest = shift - first
    if quantize:
        return torch.where(rest < 0.5, first, first + 1), torch.zeros_like(rest)
    return first, rest


def _corners(shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(lower position, upper position, weight of the position after the lower one) for the gradient of the shift.

    The derivative is x(upper) - x(lower). The lower position of a whole offset is one less, as released.
    """
    first, rest = _interpolation(shift)
    return first - (rest == 0).to(first), first + 1, rest


def _lengths(x: Tensor, num_segments: int, stride: Stride) -> list[int]:
    """T', H' and W' of the output."""
    return [(size - 1) // step + 1 for size, step in zip((num_segments, *x.shape[2:]), stride, strict=True)]


# --- the path of convolutions


def _windows(x: Tensor, shift: Tensor) -> list[int] | None:
    """For each axis, how far the kernel reaches to each side; ``None`` if the other path is to be used."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    lower, upper, _ = _corners(shift)
    reach = torch.maximum(-lower, upper).amax(1)
    return [int(r) for r in reach.tolist()] if (reach <= LARGEST_WINDOW).all() else None


def _kernels(first: Tensor, rest: Tensor, windows: list[int]) -> list[Tensor]:
    """The weights of an interpolation as kernels, for each axis (C, 2*window + 1)."""
    kernels = []
    for f, r, window in zip(first[:, :, None], rest[:, :, None], windows, strict=True):
        place = torch.arange(-window, window + 1, dtype=f.dtype) - f  # (C, K)
        kernels.append((place == 0) * (1 - r) + (place == 1) * r)
    return kernels


class _Convolution:
    """A depthwise convolution with a kernel (C, K, K'), and its gradients."""

    def __init__(self, x: Tensor, kernel: Tensor, stride: tuple[int, int]):
        self.x, self.kernel, self.stride = x, kernel[:, None], stride
        self.padding = tuple(size // 2 for size in kernel.shape[1:])

    def output(self) -> Tensor:
        return F.conv2d(self.x, self.kernel, None, self.stride, self.padding, groups=len(self.kernel))

    def gradients(self, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the input and of the kernel."""
        # torch.nn.grad would do this in contiguous memory, which is several times slower.
        options = None, self.stride, self.padding, (1, 1), False, (0, 0), len(self.kernel), (True, True, False)
        grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(grad_y, self.x, self.kernel, *options)
        return grad_x, grad_kernel.squeeze(1)


def _rows(frames: Tensor, num_segments: int) -> Tensor:
    """Frames (N*T, C, H, W) in channels_last memory as images (N, C, T, H*W) in channels_last memory, no copy."""
    return frames.unflatten(0, (-1, num_segments)).transpose(1, 2).flatten(3)


def _frames(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``_rows``, with the H and W of ``like``."""
    return rows.transpose(1, 2).flatten(0, 1).unflatten(2, like.shape[2:])


def _convolutions(
    x: Tensor, kernels: list[Tensor], num_segments: int, stride: Stride
) -> tuple[_Convolution, _Convolution, Tensor]:
    """The convolution over space, the one over time, and the map between them."""
    time, height, width = kernels
    space = _Convolution(x, height[:, :, None] * width[:, None, :], stride[1:])
    between = space.output()
    return space, _Convolution(_rows(between, num_segments), time[:, :, None], (stride[0], 1)), between


def _convolved(
    x: Tensor, shift: Tensor, num_segments: int, stride: Stride, quantize: bool, windows: list[int]
) -> Tensor:
    kernels = _kernels(*_interpolation(shift, quantize), windows)
    with torch.autocast("cpu", enabled=False):
        last = x.contiguous(memory_format=torch.channels_last)
        _, time, between = _convolutions(last, kernels, num_segments, stride)
        return _in_format_of(x, _frames(time.output(), between))


def _convolved_backward(
    grad_y: Tensor, x: Tensor, shift: Tensor, num_segments: int, stride: Stride, quantize: bool, windows: list[int]
) -> tuple[Tensor, Tensor]:
    last = x.contiguous(memory_format=torch.channels_last)
    rows = _rows(grad_y.contiguous(memory_format=torch.channels_last), _lengths(x, num_segments, stride)[0])
    lower, upper, rest = _corners(shift)
    zeros = torch.zeros_like(rest)
    kernels = _kernels(lower, rest, windows)
    steps = zip(_kernels(upper, zeros, windows), _kernels(lower, zeros, windows), strict=True)
    d_time, d_height, d_width = (plus - minus for plus, minus in steps)
    with torch.autocast("cpu", enabled=False):
        space, time, between = _convolutions(last, kernels, num_segments, stride)
        grad_between, by_time = time.gradients(rows)
        grad_x, by_space = space.gradients(_frames(grad_between, between))
        grad_shift = [
            torch.einsum("ct,ct->c", by_time.squeeze(2), d_time),
            torch.einsum("chw,ch,cw->c", by_space, d_height, kernels[2]),
            torch.einsum("chw,ch,cw->c", by_space, kernels[1], d_width),
        ]
        if quantize or (lower != upper - 1).any():  # other kernels than those of the shift's gradient
            back = _interpolation(-shift, quantize=True)[0].neg() if quantize else shift.floor()
            kernels = _kernels(back, zeros if quantize else rest, windows)
            space, time, between = _convolutions(last, kernels, num_segments, stride)
            grad_x, _ = space.gradients(_frames(time.gradients(rows)[0], between))
        return _in_format_of(x, grad_x), torch.stack(grad_shift)


def _in_format_of(x: Tensor, y: Tensor) -> Tensor:
    return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()


# --- the path of indexed reads


class _Layout:
    """The dimensions of clips in the memory order of frames: (N, T, H, W, C) or (N, T, C, H, W)."""

    def __init__(self, frames: Tensor):
        self.last = frames.is_contiguous(memory_format=torch.channels_last)
        self.axes, self.channels = ((1, 2, 3), 4) if self.last else ((1, 3, 4), 2)

    def clips(self, frames: Tensor, num_segments: int) -> Tensor:
        frames = frames.permute(0, 2, 3, 1) if self.last else frames
        return frames.unflatten(0, (-1, num_segments))

    def frames(self, clips: Tensor) -> Tensor:
        frames = clips.flatten(0, 1)
        return frames.permute(0, 3, 1, 2) if self.last else frames

    def along(self, values: Tensor, axis: int) -> Tensor:
        """(C, L) -> the same values, with C and L at the places of the channels and of the axis."""
        shape = [1] * 5
        shape[self.channels], shape[self.axes[axis]] = values.shape
        return (values if self.channels < self.axes[axis] else values.T).reshape(shape)

    def every(self, clips: Tensor, axis: int, start: int, step: int, length: int) -> Tensor:
        """``length`` positions of an axis, from ``start`` on."""
        slices = [slice(None)] * 5
        slices[self.axes[axis]] = slice(start, start + (length - 1) * step + 1, step)
        return clips[tuple(slices)]

    def moved(self, clips: Tensor, first: Tensor, lengths: list[int]) -> Tensor:
        """Position i of each axis is read at i + ``first`` (3, C), for i < length. Outside are zeros."""
        padding = [0] * 10  # pairs of (before, after) from the last dimension to the first
        for axis in self.axes:
            padding[2 * (4 - axis) + 1] = 1
        padded = F.pad(clips, padding).contiguous()
        index = self.along(torch.arange(first.shape[1], device=clips.device)[:, None], 0) * padded.stride(self.channels)
        for axis, length in enumerate(lengths):
            size = clips.shape[self.axes[axis]]
            place = first[axis, :, None].long() + torch.arange(length, device=clips.device)  # (C, L)
            place = torch.where((place >= 0) & (place < size), place, size)  # the zeros are at ``size``
            index = index + self.along(place, axis) * padded.stride(self.axes[axis])
        return padded.flatten(1).index_select(1, index.flatten()).unflatten(1, index.shape[1:])

    def interpolated(
        self, clips: Tensor, first: Tensor, rest: Tensor, lengths: list[int], stride: Stride = (1, 1, 1)
    ) -> Tensor:
        """Interpolate at ``stride * i + first + rest`` for i < length."""
        y = self.moved(clips, first, [(length - 1) * step + 2 for length, step in zip(lengths, stride, strict=True)])
        for axis, (length, step) in enumerate(zip(lengths, stride, strict=True)):
            lower, upper = (self.every(y, axis, start, step, length) for start in (0, 1))
            y = torch.lerp(lower, upper, self.along(rest[axis, :, None], axis))
        return y


def _gathered(x: Tensor, shift: Tensor, num_segments: int, stride: Stride, quantize: bool) -> Tensor:
    layout, lengths = _Layout(x), _lengths(x, num_segments, stride)
    clips = layout.clips(x, num_segments)
    return layout.frames(layout.interpolated(clips, *_interpolation(shift, quantize), lengths, stride))


def _gathered_backward(
    grad_y: Tensor, x: Tensor, shift: Tensor, num_segments: int, stride: Stride, quantize: bool
) -> tuple[Tensor, Tensor]:
    layout, lengths = _Layout(x), _lengths(x, num_segments, stride)
    gradient = layout.clips(grad_y, lengths[0])
    lower, upper, rest = _corners(shift)
    wide = upper - lower - 1  # 1 where the offset is whole
    sizes = [(length - 1) * step + 3 for length, step in zip(lengths, stride, strict=True)]
    z = layout.moved(layout.clips(x, num_segments), lower, sizes)  # holds lower, lower + 1 and lower + 2 of the first

    def interpolated(z: Tensor, axis: int) -> Tensor:
        z0, z1 = (layout.every(z, axis, start, stride[axis], lengths[axis]) for start in (0, 1))
        return torch.lerp(z0, z1, layout.along(rest[axis, :, None], axis))

    def difference(z: Tensor, axis: int) -> Tensor:
        z0, z1, z2 = (layout.every(z, axis, start, stride[axis], lengths[axis]) for start in (0, 1, 2))
        return torch.lerp(z1, z2, layout.along(wide[axis, :, None], axis)) - z0

    by_width, z = interpolated(difference(z, 2), 1), interpolated(z, 2)
    by_height, z = difference(z, 1), interpolated(z, 1)
    derivatives = difference(z, 0), interpolated(by_height, 0), interpolated(by_width, 0)
    others = [dim for dim in range(5) if dim != layout.channels]
    grad_shift = torch.stack([(gradient * derivative).sum(others) for derivative in derivatives])

    before = [num_segments, *x.shape[2:]]
    if max(stride) > 1:  # zeros between the positions that were read
        shape = list(layout.clips(x, num_segments).shape)
        spread = gradient.new_zeros(shape)
        target = spread
        for axis in range(3):
            target = layout.every(target, axis, 0, stride[axis], lengths[axis])
        target.copy_(gradient)
        gradient = spread
    return layout.frames(layout.interpolated(gradient, *_interpolation(-shift, quantize), before)), grad_shift
