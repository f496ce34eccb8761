"""Temporal pyramid network (TPN, CVPR 2020): a neck on the last two stages of a ResNet, as released for TSM.

It takes frames of two stages and returns one map per clip. All convolutions over space are 2-D convolutions of frames.
Letters: N clips, T frames; C, h, w of the earlier stage; C', h', w' of the last stage.

The names are those of the released weights. There, all kernels are 3-D. Here, only the kernels over time are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOWS = ("cascade", "parallel")


class ConvBN(nn.Module):
    """A convolution without bias, batch norm and ReLU. ``norm`` is the name of the batch norm."""

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int, stride: int = 1, groups: int = 1, norm: str = "bn"
    ):
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.add_module(norm, nn.BatchNorm2d(channels))
        self.norm_name = norm

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(getattr(self, self.norm_name)(self.conv(x)))


class SpatialModulation(nn.Module):
    """Gives the map of the earlier stage the size of the last stage's: (N*T, C, h, w) -> (N*T, C', h', w')."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        # The second index counts convolutions that each halve the map. Two neighbouring stages need one.
        self.spatial_modulation = nn.ModuleList([nn.ModuleList([ConvBN(in_channels, channels, 3, stride=2)])])

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial_modulation[0][0](x)


class TemporalModulation(nn.Module):
    """A grouped convolution of 3 frames, then the maximum over all frames: (N*T, C', h', w') -> (N, c, h', w')."""

    def __init__(self, in_channels: int, channels: int, num_segments: int, groups: int):
        super().__init__()
        self.num_segments = num_segments
        self.conv = nn.Conv3d(in_channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # In channels_last memory, the frames are also images (N, C', T, h'*w'). The 2-D kernels are faster.
        y = x.unflatten(0, (-1, self.num_segments)).transpose(1, 2).flatten(3)
        y = F.conv2d(y, self.conv.weight.squeeze(4), padding=(1, 0), groups=self.conv.groups)
        y = F.max_pool2d(y, (self.num_segments, 1))  # (N, c, 1, h'*w')
        return y.squeeze(2).unflatten(2, x.shape[2:])


class Downsampling(nn.Module):
    """A convolution of 3 frames on a clip of one frame: only its middle tap sees data. (N, c, h', w') -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight[:, :, 1])


class LevelFusion(nn.Module):
    """Joins the two levels: two of (N, c, h', w') -> (N, C', h', w')."""

    def __init__(self, channels: int, out_channels: int, groups: int):
        super().__init__()
        self.ops = nn.ModuleList(ConvBN(channels, channels, 1, groups=groups, norm="norm") for _ in range(2))
        self.fusion_conv = _pointwise(2 * channels, out_channels)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return self.fusion_conv(torch.cat([op(level) for op, level in zip(self.ops, levels, strict=True)], dim=1))


class AuxiliaryHead(nn.Module):
    """Classifies clips by the earlier stage: (N*T, C, h, w) -> (N, K)."""

    def __init__(self, in_channels: int, num_classes: int, num_segments: int, dropout: float):
        super().__init__()
        self.num_segments = num_segments
        self.convs = ConvBN(in_channels, 2 * in_channels, 3, stride=2)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.convs(x).mean((2, 3)).unflatten(0, (-1, self.num_segments)).mean(1)  # (N, 2C)
        return self.fc(self.dropout(features))


class TemporalPyramid(nn.Module):
    r"""The neck. With x4 and x5, the maps of the last two stages:

    .. math::
        a_0 &= M_0(S(x_4)) \qquad a_1 = M_1(x_5) \qquad t_0 = a_0 + a_1 \qquad t_1 = a_1 \\
        c_0 &= t_0 \qquad c_1 = t_1 + D(t_0) \qquad
        y = P([F_2(t_0, t_1),\; F(c_0, c_1)])

    S is the spatial modulation, M the temporal modulations, D the downsampling, F the level fusions, and P a 1x1
    convolution with BN and ReLU. Both M see all T frames, so both levels have the same temporal rate, as released.

    Args:
        in_channels: C and C'.
        num_segments: T.
        num_classes: K of the auxiliary head.
        dropout: dropout probability of the auxiliary head.
        flow: ``"cascade"`` is the formula above. The released code computes it by accident, and the released weights
            need it. ``"parallel"`` is the intended flow: :math:`c_0 = a_0`, :math:`c_1 = a_1 + D(a_0)`.
        groups: number of groups of the grouped convolutions.

    Shapes: ``(N*T, C, h, w), (N*T, C', h', w') -> (N, C', h', w')`` with ``h' = (h + 1) // 2``. The auxiliary head
    ``aux_head`` is a part of the neck in the released weights. The network calls it, in training only.

    Errors: ``ValueError`` for an unknown flow, or if the channels do not fit the groups.
    """

    def __init__(
        self,
        in_channels: tuple[int, int],
        num_segments: int,
        num_classes: int,
        dropout: float = 0.5,
        flow: str = "cascade",
        groups: int = 32,
    ):
        super().__init__()
        if flow not in FLOWS:
            raise ValueError(f"flow={flow!r} must be one of {FLOWS}")
        early, last = in_channels
        middle = last // 2
        self.flow = flow
        self.temporal_modulation_ops = nn.ModuleList(
            TemporalModulation(last, middle, num_segments, groups) for _ in range(2)
        )
        self.downsampling_ops = nn.ModuleList([Downsampling(middle)])
        self.level_fusion_op = LevelFusion(middle, last, groups)
        self.spatial_modulation = SpatialModulation(early, last)
        self.level_fusion_op2 = LevelFusion(middle, last, groups)
        self.pyramid_fusion_op = _pointwise(2 * last, last)
        self.aux_head = AuxiliaryHead(early, num_classes, num_segments, dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.xavier_uniform_(module.weight)
        nn.init.normal_(self.aux_head.fc.weight, std=0.01)
        nn.init.zeros_(self.aux_head.fc.bias)

    def forward(self, early: Tensor, last: Tensor) -> Tensor:
        levels = self.spatial_modulation(early), last
        a0, a1 = (op(level) for op, level in zip(self.temporal_modulation_ops, levels, strict=True))
        top_down = [a0 + a1, a1]
        c0, c1 = top_down if self.flow == "cascade" else (a0, a1)
        bottom_up = [c0, c1 + self.downsampling_ops[0](c0)]
        fused = [self.level_fusion_op2(top_down), self.level_fusion_op(bottom_up)]
        return self.pyramid_fusion_op(torch.cat(fused, dim=1))


def _pointwise(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
