"""The released operations of the compared systems, as plain modules that take the weights of ours.

Each function here builds a module of ours and names its released form. The released forms do the same steps as the
authors' code, also its permutations and copies:

* TAM: a 2-D convolution with a group for each video and channel;
* TEA, STM, TEINet: convolutions over time of permuted copies;
* TIN: a loop over videos and groups that shifts by whole frames;
* GST, C3D, SmallBig, TPN, V4D: 3-D layers on clips;
* RubiksNet: eight reads for each output.

TEINet's authors released no code. Its form is that of the public third-party module. RubiksNet's released code is a
CUDA kernel. Its form does the kernel's reads with PyTorch's indexing. Letters: N clips, T frames, C channels.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.resnet import Bottleneck
from models.smallbig import SmallBigBottleneck
from models.stm import STMBottleneck
from models.tea import TEABottleneck
from ops import (
    GST,
    R4D,
    TAM,
    TEI,
    TIN,
    BigPool,
    ChannelwiseMotion,
    ChannelwiseTemporalConv,
    ClipConv3d,
    RubiksShift3D,
    TemporalPyramid,
)
from ops.tpn import Downsampling, TemporalModulation

UNITS = 4  # of a video of V4D


class Forms(NamedTuple):
    """A module of ours, and the function that builds its released form with copies of its weights.

    ``channels`` has one number for each input. The released form takes clips ``(N, C, clip, H, W)``, or frames as ours
    does if ``clip`` is 0.
    """

    ours: nn.Module
    release: Callable[[nn.Module], nn.Module]
    channels: tuple[int, ...]
    clip: int = 0


# --- modules on frames


def tam(channels: int, frames: int) -> Forms:
    return Forms(TAM(channels, frames), ReleasedTAM, (channels,))


class ReleasedTAM(nn.Module):
    """One 2-D convolution with a group for each video and channel."""

    def __init__(self, ours: TAM):
        super().__init__()
        self.G, self.L, self.frames = copy.deepcopy(ours.G), copy.deepcopy(ours.L), ours.num_segments

    def forward(self, x: Tensor) -> Tensor:
        clips = x.unflatten(0, (-1, self.frames)).transpose(1, 2).contiguous()  # (N, C, T, H, W)
        n, channels, frames, height, width = clips.shape
        pooled = F.adaptive_avg_pool2d(clips.view(-1, frames, height, width), 1).view(-1, frames)  # (N*C, T)
        kernels = self.G(pooled).view(-1, 1, 3, 1)
        weighted = clips * self.L(pooled.view(n, channels, frames)).view(n, channels, frames, 1, 1)
        image = weighted.view(1, n * channels, frames, height * width)
        y = F.conv2d(image, kernels, padding=(1, 0), groups=n * channels).view(clips.shape)
        return y.transpose(1, 2).contiguous().view(x.shape)


def teinet(channels: int, frames: int) -> Forms:
    return Forms(TEI(channels, frames), ReleasedTEI, (channels,))


class ReleasedTEI(nn.Module):
    """A permuted copy of the clips, then a depthwise 2-D convolution."""

    def __init__(self, ours: TEI):
        super().__init__()
        self.mem, self.dwconv, self.frames = copy.deepcopy(ours.mem), copy.deepcopy(ours.tim.dwconv), ours.num_segments

    def forward(self, x: Tensor) -> Tensor:
        clips = x.unflatten(0, (-1, self.frames))  # (N, T, C, H, W)
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1).unflatten(0, (-1, self.frames))  # (N, T, C)
        motion = self.mem.fc2(pooled[:, 1:]) - self.mem.fc1(pooled[:, :-1])
        gated = clips[:, :-1] * self.mem.fc3(motion).sigmoid()[..., None, None]
        enhanced = torch.cat([gated, clips[:, -1:]], dim=1).transpose(1, 2).contiguous()  # (N, C, T, H, W)
        y = self.dwconv(enhanced.flatten(3)).view(enhanced.shape)
        return y.transpose(1, 2).contiguous().view(x.shape)


def tin(channels: int, frames: int) -> Forms:
    return Forms(TIN(channels, frames), ReleasedTIN, (channels,))


class ReleasedTIN(nn.Module):
    """Two shifts by whole frames of each group of channels, then a weighted sum."""

    def __init__(self, ours: TIN):
        super().__init__()
        self.offset, self.weight = copy.deepcopy(ours.offset), copy.deepcopy(ours.weight)
        self.moving, self.frames = ours.moving, ours.num_segments

    def forward(self, x: Tensor) -> Tensor:
        clips = x.unflatten(0, (-1, self.frames))  # (N, T, C, H, W)
        moving, rest = clips.split([self.moving, clips.shape[2] - self.moving], dim=2)
        pooled = F.adaptive_avg_pool2d(moving.flatten(0, 1), 1).flatten(1).unflatten(0, (-1, self.frames)).mT
        offsets, weights = self.offset(pooled), self.weight(pooled).mT  # (N, 2), (N, T, 2)
        offsets = torch.cat([offsets, -offsets], dim=1)
        groups = moving.unflatten(2, (4, -1))  # (N, T, 4, c, H, W)
        first = offsets.floor()
        fraction = (offsets - first)[:, None, :, None, None, None]
        y = (1 - fraction) * _WholeShift.apply(groups, first) + fraction * _WholeShift.apply(groups, first + 1)
        y = y * weights.repeat(1, 1, 2)[..., None, None, None]
        return torch.cat([y.flatten(2, 3), rest], dim=2).flatten(0, 1)


class _WholeShift(torch.autograd.Function):
    """Moves each group of each video, ``(N, T, G, c, H, W)``, by the whole number ``offsets`` (N, G) of frames."""

    @staticmethod
    def forward(ctx, x: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        y, frames = torch.zeros_like(x), x.shape[1]
        for video, row in enumerate(offsets.int().tolist()):
            for group, offset in enumerate(row):
                source, target = max(-offset, 0), max(offset, 0)
                count = max(frames - abs(offset), 0)
                y[video, target : target + count, group] = x[video, source : source + count, group]
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _WholeShift.apply(gradient, -ctx.saved_tensors[0]), None


def rubiksnet(channels: int, frames: int) -> Forms:
    return Forms(RubiksShift3D(channels, frames), ReleasedRubiksShift, (channels,))


class ReleasedRubiksShift(nn.Module):
    """Eight reads for each output, and eight for each gradient."""

    def __init__(self, ours: RubiksShift3D):
        super().__init__()
        self.shift, self.frames = nn.Parameter(ours.shift.detach().clone()), ours.num_segments

    def forward(self, x: Tensor) -> Tensor:
        clips = x.unflatten(0, (-1, self.frames)).transpose(1, 2)  # (N, C, T, H, W)
        return _EightReads.apply(clips, self.shift).transpose(1, 2).flatten(0, 1)


class _EightReads(torch.autograd.Function):
    """Trilinear interpolation of clips (N, C, T, H, W) at the offsets ``shift`` (3, C), which are no whole numbers."""

    @staticmethod
    def read(x: Tensor, first: Tensor) -> Tensor:
        """The clips at the whole offsets ``first`` (3, C). Outside are zeros."""
        index, inside = [torch.arange(x.shape[1], device=x.device).view(-1, 1, 1, 1)], 1
        for axis, (offset, size) in enumerate(zip(first.long(), x.shape[2:], strict=True)):
            shape = [-1] + [size if dim == axis else 1 for dim in range(3)]
            place = (offset[:, None] + torch.arange(size, device=x.device)).view(shape)
            inside = inside * ((place >= 0) & (place < size))
            index.append(place.clamp(0, size - 1))
        return x[(slice(None), *index)] * inside

    @staticmethod
    def corners(x: Tensor, shift: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...], list[Tensor]]]:
        """For each of the eight reads: the read clips, 0 or 1 for each axis, and the weights (C,) of the axes."""
        first = shift.floor()
        weights = 1 - (shift - first), shift - first  # of the lower and of the upper position, each (3, C)
        for corner in itertools.product((0, 1), repeat=3):
            read = _EightReads.read(x, first + first.new_tensor(corner)[:, None])
            yield read, corner, [weights[upper][axis] for axis, upper in enumerate(corner)]

    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, shift)
        return sum((t * h * w)[:, None, None, None] * read for read, _, (t, h, w) in _EightReads.corners(x, shift))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, shift = ctx.saved_tensors
        of_shift = torch.zeros_like(shift)
        for read, corner, (t, h, w) in _EightReads.corners(x, shift):
            signs = gradient.new_tensor(corner)[:, None] * 2 - 1
            of_shift += signs * torch.stack([h * w, t * w, t * h]) * (gradient * read).sum((0, 2, 3, 4))
        return _EightReads.apply(gradient, -shift), F.normalize(of_shift, dim=0)


# --- parts of a bottleneck on frames


class Middle(nn.Module):
    """The part of a bottleneck between the first ReLU and conv3."""

    def __init__(self, block: Bottleneck):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block.middle(x)


def tea(channels: int, frames: int) -> Forms:
    block = TEABottleneck(channels, channels // 4)
    block.num_segments = frames
    block.add_time()
    return Forms(Middle(block), ReleasedTEA, (block.conv1.out_channels,))


class ReleasedTEA(nn.Module):
    """Motion excitation on maps, then multiple temporal aggregation with permuted 1-D convolutions."""

    def __init__(self, ours: Middle):
        super().__init__()
        block = ours.block
        parts = (block.me, block.shifts, block.convs, block.bns)
        self.me, self.shifts, self.convs, self.bns = (copy.deepcopy(part) for part in parts)
        self.frames = block.num_segments

    def forward(self, x: Tensor) -> Tensor:
        me, frames = self.me, self.frames
        reduced = me.bn1(me.conv1(x))
        now, after = (y.unflatten(0, (-1, frames)) for y in (reduced, me.conv2(reduced)))
        motion = F.pad(after[:, 1:] - now[:, :-1], (0, 0, 0, 0, 0, 0, 0, 1)).flatten(0, 1)
        gate = me.bn3(me.conv3(F.adaptive_avg_pool2d(motion, 1))).sigmoid() - 0.5
        groups = (x + x * gate.expand_as(x)).chunk(4, dim=1)
        done: list[Tensor] = []
        for group, shift, conv, bn in zip(groups, self.shifts, self.convs, self.bns, strict=False):
            summed = group + done[-1] if done else group
            done.append(F.relu(bn(conv(_over_time(summed, shift.weight, frames)))))
        return torch.cat([*done, _over_time(groups[3], self.shifts[3].weight, frames)], dim=1)


def stm(channels: int, frames: int) -> Forms:
    planes = channels // 4
    block = STMBottleneck(channels, planes)
    block.cmm = ChannelwiseMotion(planes, frames)
    block.insert("before_conv2", "temporal", ChannelwiseTemporalConv(planes, frames))
    return Forms(Middle(block), ReleasedSTM, (planes,))


class ReleasedSTM(nn.Module):
    """A permuted 1-D convolution before the 3x3, and the difference of maps beside it."""

    def __init__(self, ours: Middle):
        super().__init__()
        block = ours.block
        parts = (block.temporal, block.conv2, block.bn2, block.cmm)
        self.temporal, self.conv2, self.bn2, self.cmm = (copy.deepcopy(part) for part in parts)
        self.frames = block.cmm.num_segments

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(_over_time(x, self.temporal.weight, self.frames))))
        reduced = self.cmm.stage_bn(self.cmm.stage_conv(x))
        now, after = (z.unflatten(0, (-1, self.frames)) for z in (reduced, self.cmm.shift(reduced)))
        motion = torch.cat([after[:, 1:] - now[:, :-1], torch.zeros_like(now[:, :1])], dim=1)
        return y + self.cmm.conv1x1(motion.flatten(0, 1))


def _over_time(x: Tensor, weight: Tensor, frames: int) -> Tensor:
    """A depthwise 1-D convolution of the time series of all pixels, (N*H*W, C, T), and the copies to and from them."""
    series = x.unflatten(0, (-1, frames)).permute(0, 3, 4, 2, 1).contiguous()  # (N, H, W, C, T)
    y = F.conv1d(series.flatten(0, 2), weight, padding=1, groups=len(weight)).view(series.shape)
    return y.permute(0, 4, 3, 1, 2).contiguous().view(x.shape)


# --- layers on clips


def gst(channels: int, frames: int, beta: int = 2) -> Forms:
    return _block(channels, frames, conv2=GST(channels // 4, channels // 4, frames, beta=beta))


def c3d(channels: int, frames: int) -> Forms:
    return _block(channels, frames, conv2=ClipConv3d(channels // 4, channels // 4, frames))


def v4d(channels: int, frames: int) -> Forms:
    conv1 = ClipConv3d(channels, channels // 4, frames // UNITS, kernel_size=(3, 1, 1))
    return _block(channels, frames // UNITS, conv1=conv1)


def _block(channels: int, frames: int, **convs: nn.Module) -> Forms:
    block = Bottleneck(channels, channels // 4)
    for name, conv in convs.items():
        block.insert(name, name, conv)
    return Forms(block, on_clips, (channels,), frames)


def smallbig(channels: int, frames: int) -> Forms:
    block = SmallBigBottleneck(channels, channels // 4)
    block.num_segments = frames
    block.widen("all_frames", extra=False)
    return Forms(block, ReleasedSmallBig, (channels,), frames)


def tpn(channels: int, frames: int) -> Forms:
    ours = TemporalPyramid((channels, 2 * channels), frames, num_classes=1)
    del ours.aux_head  # it is not a part of the neck's forward pass
    return Forms(ours, on_clips, (channels, 2 * channels), frames)


def tpn_temporal(channels: int, frames: int) -> Forms:
    return Forms(TemporalModulation(channels, channels // 2, frames, groups=32), on_clips, (channels,), frames)


def r4d(channels: int, frames: int) -> Forms:
    return Forms(R4D(channels, frames, UNITS), ReleasedR4D, (channels,), frames // UNITS)


def on_clips(module: nn.Module) -> nn.Module:
    """A copy of a module of ours for clips (N, C, T, H, W). Every layer is a 3-D layer, as released."""
    if isinstance(module, GST):
        return ReleasedGST(module)
    if isinstance(module, BigPool):
        frames, padding = (module.num_segments, 0) if module.all_frames else (3, 1)
        return nn.MaxPool3d((frames, 3, 3), stride=1, padding=(padding, 1, 1))
    if isinstance(module, TemporalModulation):
        return nn.Sequential(on_clips(module.conv), nn.MaxPool3d((module.num_segments, 1, 1)))
    if isinstance(module, Downsampling):
        return on_clips(module.conv)
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        return _conv3d(module)
    if isinstance(module, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(module.num_features)
        norm.load_state_dict(module.state_dict())
        return norm
    copied = copy.deepcopy(module)
    for name, child in module.named_children():
        setattr(copied, name, on_clips(child))
    return copied


def _conv3d(conv: nn.Conv2d | nn.Conv3d) -> nn.Conv3d:
    (kernel, stride, padding), weight = (conv.kernel_size, conv.stride, conv.padding), conv.weight.detach()
    if isinstance(conv, nn.Conv2d):
        kernel, stride, padding, weight = (1, *kernel), (1, *stride), (0, *padding), weight[:, :, None]
    copied = nn.Conv3d(conv.in_channels, conv.out_channels, kernel, stride, padding, groups=conv.groups, bias=False)
    copied.weight = nn.Parameter(weight.clone())
    return copied


class ReleasedGST(nn.Module):
    """Two 3-D convolutions, with the kernels 1x3x3 and 3x3x3."""

    def __init__(self, ours: GST):
        super().__init__()
        self.spatial, self.temporal = _conv3d(ours.spatial), _conv3d(ours.temporal)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.spatial.in_channels
        return torch.cat([self.spatial(x[:, :seen]), self.temporal(x[:, -seen:])], dim=1)


class ReleasedSmallBig(nn.Module):
    """3-D pools, convolutions and norms. The third big view has one frame, which is added to all frames."""

    def __init__(self, block: SmallBigBottleneck):
        super().__init__()
        self.block = on_clips(block)

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        y = F.relu(block.bn1(block.conv1(x)) + block.big1(block.conv1(block.pool(x))))
        y = F.relu(block.bn2(block.conv2(y)) + block.big2(block.conv2(block.pool(y))))
        y = block.bn3(block.conv3(y)) + block.big3(block.conv3(block.third_pool(y)))
        return F.relu(y + x)


class ReleasedR4D(nn.Module):
    """A 3-D convolution over (U, T, H*W) of units (N*U, C, T, H, W), and the copies to and from this order."""

    def __init__(self, ours: R4D):
        super().__init__()
        self.conv, self.units = _conv3d(ours), ours.units

    def forward(self, x: Tensor) -> Tensor:
        videos = x.unflatten(0, (-1, self.units)).transpose(1, 2).contiguous()  # (N, C, U, T, H, W)
        y = self.conv(videos.flatten(4)).reshape(videos.shape)
        return x + y.transpose(1, 2).flatten(0, 1).contiguous()
