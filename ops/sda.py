"""Selective dependency aggregation (SDA, ACM Multimedia 2021) in plain PyTorch.

Four dependency blocks look at a feature map over different ranges of space and time. For each clip, a learned query
gives each block a weight. The weighted sum of their outputs gates the feature map. Letters: N clips, T frames, c
reduced channels.

A block's ``summary`` is its output before it is expanded to the size of its input. The weighted sum expands it by
broadcasting. If the frames are in channels_last memory, the clips are in channels_last_3d memory, and all steps keep
this layout.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQUEEZES = ("avg", "max", "avg+max")


class Dependency(nn.Module, ABC):
    """A block, (N, c, T, H, W) -> the same shape. In the shape of ``summary``, T, H and W may be 1."""

    def forward(self, x: Tensor) -> Tensor:
        return self.summary(x).expand_as(x)

    @abstractmethod
    def summary(self, x: Tensor) -> Tensor:
        """The output before it is expanded."""


class LST(Dependency):
    """Long-range space-time dependency: squeeze over T, H, W, a linear map, BN, ReLU, expand. (N,c,T,H,W) -> the same.

    With ``squeeze="avg+max"``, both squeezes pass through the same linear map and BN, and are added before the ReLU.
    """

    def __init__(self, channels: int, squeeze: str = "avg"):
        super().__init__()
        self.squeeze = _checked(squeeze)
        self.conv = nn.Linear(channels, channels, bias=False)
        self.bn = nn.BatchNorm1d(channels)
        nn.init.normal_(self.conv.weight, 0, 0.001)

    def summary(self, x: Tensor) -> Tensor:
        pooled = _squeeze(x, (2, 3, 4), self.squeeze)  # one or two of (N, c)
        y = torch.stack(pooled, dim=1).flatten(0, 1)  # (N or 2N, c): BN sees both squeezes as one batch
        y = self.bn(self.conv(y)).unflatten(0, (-1, len(pooled))).sum(1)  # (N, c)
        return F.relu(y)[:, :, None, None, None]  # (N, c, 1, 1, 1)


class LT(Dependency):
    """Long-range temporal dependency: squeeze over T, a 3x3 convolution, BN, ReLU, expand. (N,c,T,H,W) -> the same."""

    def __init__(self, channels: int, squeeze: str = "avg"):
        super().__init__()
        self.squeeze = _checked(squeeze)
        self.conv = nn.Conv2d(channels * _squeezes(squeeze), channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        _msra(self.conv)

    def summary(self, x: Tensor) -> Tensor:
        y = torch.cat(_squeeze(x, (2,), self.squeeze), dim=1)  # (N, c or 2c, H, W)
        if x.is_contiguous(memory_format=torch.channels_last_3d):  # a mean changes the layout
            y = y.contiguous(memory_format=torch.channels_last)
        return F.relu(self.bn(self.conv(y)))[:, :, None]  # (N, c, 1, H, W)


class LS(Dependency):
    """Long-range spatial dependency: squeeze H, W, convolve 3 frames, BN, ReLU, expand. (N,c,T,H,W) -> the same."""

    def __init__(self, channels: int, squeeze: str = "avg"):
        super().__init__()
        self.squeeze = _checked(squeeze)
        self.conv = nn.Conv1d(channels * _squeezes(squeeze), channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm1d(channels)
        _msra(self.conv)

    def summary(self, x: Tensor) -> Tensor:
        y = torch.cat(_squeeze(x, (3, 4), self.squeeze), dim=1)  # (N, c or 2c, T)
        y = F.relu(self.bn(self.conv(y)))  # (N, c, T)
        # Stored frame by frame, like the features, because a sum takes over the memory layout of its terms.
        y = y.mT.contiguous().mT
        return y[:, :, :, None, None]  # (N, c, T, 1, 1)


class S122(Dependency):
    """Short-range dependency: 1x2x2 pool, (3,1,1) convolution, BN, ReLU, average back. (N,c,T,H,W) -> the same.

    The pooled map is (max(H//2, 2), max(W//2, 2)). On odd sizes the adaptive windows overlap, as released.
    """

    def __init__(self, channels: int, squeeze: str = "avg"):
        super().__init__()
        self.squeeze = _checked(squeeze)
        self.conv = nn.Conv3d(channels * _squeezes(squeeze), channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn = nn.BatchNorm3d(channels)
        _msra(self.conv)

    def summary(self, x: Tensor) -> Tensor:
        t, h, w = x.shape[2:]
        size = (max(h // 2, 2), max(w // 2, 2))
        frames = x.transpose(1, 2).flatten(0, 1)  # (N*T, c, H, W)
        pools = {"avg": _average_to, "max": F.adaptive_max_pool2d}
        # As released, avg+max puts the two pools of a channel next to each other (c0 avg, c0 max, c1 avg, ...).
        pooled = [pools[name](frames, size) for name in self.squeeze.split("+")]
        y = pooled[0] if len(pooled) == 1 else torch.stack(pooled, dim=2).flatten(1, 2)  # (N*T, c or 2c, H//2, W//2)
        y = F.relu(self.bn(self.conv(y.unflatten(0, (-1, t)).transpose(1, 2))))  # (N, c, T, H//2, W//2)
        y = _average_to(y.transpose(1, 2).flatten(0, 1), (h, w))
        return y.unflatten(0, (-1, t)).transpose(1, 2)  # (N, c, T, H, W)


DEPENDENCIES = {"LST": LST, "LT": LT, "LS": LS, "S122": S122}


class QueryAggregation(nn.Module):
    r"""Weight the branches R_m for each clip by a learned query q (``qVec``; SDA.png, "aggregation"):

    .. math:: \alpha = \mathrm{softmax}_m(\mathrm{avgpool}(R_m)\, q^\top), \qquad R = \sum_m \alpha_m R_m

    Takes a list of M tensors (N,c,T,H,W), or their summaries, and returns their weighted sum (N,c,T,H,W). ``weights``
    returns the alpha of such a list. To see the weights that a network uses, call it in a forward hook:
    ``aggregation.register_forward_hook(lambda module, inputs, output: seen.append(module.weights(*inputs)))``.
    """

    # This parameter is not in a standard layer. As released, it has no weight decay and its own learning rate.
    optim_params = {"qVec": "query"}

    def __init__(self, channels: int):
        super().__init__()
        self.qVec = nn.Parameter(torch.empty(1, channels).uniform_(-0.1, 0.1))

    def weights(self, branches: list[Tensor]) -> Tensor:
        """The weight alpha of each branch in each clip (N, M). The weights of a clip sum to 1."""
        keys = torch.stack([branch.mean((2, 3, 4)) for branch in branches], dim=1)  # (N, M, c)
        return (keys @ self.qVec.T).softmax(dim=1).squeeze(2)  # (N, M)

    def forward(self, branches: list[Tensor]) -> Tensor:
        weights = self.weights(branches)[..., None, None, None, None].unbind(1)  # M of (N, 1, 1, 1, 1)
        total = branches[0] * weights[0]
        for branch, weight in zip(branches[1:], weights[1:], strict=True):  # adds smaller summaries before larger ones
            total = torch.addcmul(total, branch, weight)
        return total


class AverageAggregation(nn.Module):
    """The plain mean of the branches. No parameters."""

    def forward(self, branches: list[Tensor]) -> Tensor:
        return sum(branches) / len(branches)


AGGREGATIONS = {"query": QueryAggregation, "average": lambda channels: AverageAggregation()}


class FrameBatchNorm(nn.BatchNorm3d):
    """BatchNorm3d of clips given as frames (N*T, C, H, W): the statistics are the same, but the kernels are faster."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(f"takes frames (N*T, C, H, W), got {tuple(input.shape)}")


class SDA(nn.Module):
    r"""Selective dependency aggregation: gates a feature map Y by its space-time dependencies.

    .. math::
        Y' &= \mathrm{ReLU}(\mathrm{BN}(W_{down} Y)) \qquad R_m = \mathrm{dependency}_m(Y') \\
        Z  &= Y \odot \sigma(\mathrm{BN}(W_{up} \textstyle\sum_m \alpha_m R_m))

    In a bottleneck, SDA is after conv2 and its BN and before the ReLU. As released, BN follows both 1x1x1 convolutions
    and is in every block. The gate has no residual and starts near 0.5.

    Args:
        channels: C of the input.
        num_segments: T, the number of frames of a clip. The released 16-frame networks use 8 here, so they gate the
            two halves of a clip separately.
        reduction: the blocks work on ``max(C // reduction, 16)`` channels.
        dependencies: any of ``"LST" "LT" "LS" "S122"``, in the order of ``mdm`` in the released code.
        aggregation: ``"query"`` (the paper's) or ``"average"``.
        squeeze: how the blocks pool, ``"avg"`` (the paper's), ``"max"`` or ``"avg+max"``.

    Shapes: ``(N*T, C, H, W) -> (N*T, C, H, W)``.

    Errors: ``ValueError`` for an unknown name, if there is no dependency, or if the number of frames is not a multiple
    of ``num_segments``.
    """

    optim_group = "sda"  # the parameter group of its weights and queries, which has its own learning rate

    def __init__(
        self,
        channels: int,
        num_segments: int = 8,
        reduction: int = 4,
        dependencies: tuple[str, ...] = ("LST", "LT", "LS", "S122"),
        aggregation: str = "query",
        squeeze: str = "avg",
    ):
        super().__init__()
        unknown = [name for name in dependencies if name not in DEPENDENCIES]
        if unknown or not dependencies:
            raise ValueError(f"dependencies={tuple(dependencies)} must be one or more of {tuple(DEPENDENCIES)}")
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation={aggregation!r} must be one of {tuple(AGGREGATIONS)}")
        reduced = max(channels // reduction, 16)
        self.num_segments = num_segments
        self.channel_down = nn.Conv3d(channels, reduced, 1, bias=False)
        self.bn1 = FrameBatchNorm(reduced)
        self.mdm = nn.ModuleList(DEPENDENCIES[name](reduced, squeeze) for name in dependencies)
        self.agg = AGGREGATIONS[aggregation](reduced)
        self.channel_up = nn.Conv3d(reduced, channels, 1, bias=False)
        self.bn2 = FrameBatchNorm(channels)
        _msra(self.channel_down)
        nn.init.xavier_normal_(self.channel_up.weight)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % self.num_segments:
            raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {self.num_segments}")
        reduced = F.relu_(self.bn1(_pointwise(self.channel_down, x)))  # (N*T, c, H, W)
        clips = reduced.unflatten(0, (-1, self.num_segments)).transpose(1, 2)  # (N, c, T, H, W)
        gate = self.agg([block.summary(clips) for block in self.mdm]).expand_as(clips)  # (N, c, T, H, W)
        gate = gate.transpose(1, 2).flatten(0, 1)  # (N*T, c, H, W)
        return x * self.bn2(_pointwise(self.channel_up, gate)).sigmoid_()  # (N*T, C, H, W)


def _pointwise(conv: nn.Conv3d, frames: Tensor) -> Tensor:
    """A 1x1x1 convolution of clips, frame by frame."""
    return F.conv2d(frames, conv.weight.squeeze(2))


def _average_to(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling. If the size only halves or doubles, faster kernels do it."""
    before, after = torch.Size(size), frames.shape[2:]
    if after == (2 * before[0], 2 * before[1]):
        return F.avg_pool2d(frames, 2)
    if before == (2 * after[0], 2 * after[1]):
        return F.interpolate(frames, size)  # by the nearest neighbour
    return F.adaptive_avg_pool2d(frames, size)


def _squeeze(x: Tensor, dims: tuple[int, ...], squeeze: str) -> list[Tensor]:
    pools = {"avg": torch.mean, "max": torch.amax}
    return [pools[name](x, dim=dims) for name in squeeze.split("+")]


def _squeezes(squeeze: str) -> int:
    return len(squeeze.split("+"))


def _checked(squeeze: str) -> str:
    if squeeze not in SQUEEZES:
        raise ValueError(f"squeeze={squeeze!r} must be one of {SQUEEZES}")
    return squeeze


def _msra(conv: nn.Module) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
