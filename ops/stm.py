"""Spatiotemporal and motion encoding (STM, ICCV 2019) in plain PyTorch.

An STM block is a ResNet bottleneck with two branches between conv1 and conv3. CSTM (paper section 3.1) is a convolution
over time, ``ChannelwiseTemporalConv``, before the 3x3 convolution. CMM (paper section 3.2) is ``ChannelwiseMotion``.
The sum of the branches goes to conv3. Letters: N clips, T frames, C channels, c reduced channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelwiseTemporalConv(nn.Conv1d):
    """The convolution over time of CSTM: three frames, each channel alone, zeros beyond the clip, no bias.

    As released, the first quarter of the channels starts with the previous frame, the last quarter with the next
    frame, and the others with their own frame. (A temporal shift has the opposite order, and moves an eighth each.)

    Args:
        channels: C.
        num_segments: T, the number of frames of a clip.

    ``weight`` has the shape (C, 1, 3). Shapes: ``(N*T, C, H, W) -> (N*T, C, H, W)``.

    Errors: ``ValueError`` if the number of frames is not a multiple of ``num_segments``.
    """

    def __init__(self, channels: int, num_segments: int):
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.num_segments = num_segments
        quarter = channels // 4
        with torch.no_grad():
            self.weight.zero_()
            self.weight[:quarter, :, 0] = 1
            self.weight[quarter : channels - quarter, :, 1] = 1
            self.weight[channels - quarter :, :, 2] = 1

    def forward(self, x: Tensor) -> Tensor:
        # A 2-D convolution of (N, C, T, H*W): for frames in channels_last memory, this is a view.
        clips = _split(x, self.num_segments).flatten(3).transpose(1, 2)
        y = F.conv2d(clips, self.weight[..., None], padding=(1, 0), groups=self.groups)
        return y.transpose(1, 2).unflatten(3, x.shape[2:]).flatten(0, 1)  # (N*T, C, H, W)


class ChannelwiseMotion(nn.Module):
    r"""Channel-wise motion module (CMM): features of the motion from each frame to the next one.

    .. math:: Y = \mathrm{BN}(W_{red} X) \qquad H_t = W_{dw} * Y_{t+1} - Y_t \qquad H_T = 0 \qquad M = W_{exp} H

    As released, nothing normalises M, and the motion of the last frame is exactly 0.

    Args:
        channels: C of the input.
        num_segments: T, the number of frames of a clip.
        stride: 2 halves the map of M by the maximum of 2x2 places.
        reduction: Y has ``max(C // reduction, 1)`` channels.

    Shapes: ``(N*T, C, H, W) -> (N*T, C, H // stride, W // stride)``.

    Errors: ``ValueError`` if the number of frames is not a multiple of ``num_segments``.
    """

    def __init__(self, channels: int, num_segments: int, stride: int = 1, reduction: int = 16):
        super().__init__()
        reduced = max(channels // reduction, 1)
        self.num_segments, self.stride = num_segments, stride
        self.stage_conv = nn.Conv2d(channels, reduced, 1, bias=False)
        self.stage_bn = nn.BatchNorm2d(reduced)
        self.shift = nn.Conv2d(reduced, reduced, 3, padding=1, groups=reduced, bias=False)  # the released name
        self.conv1x1 = nn.Conv2d(reduced, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stage_bn(self.stage_conv(x))  # (N*T, c, H, W)
        now, after = (_split(z, self.num_segments).transpose(1, 2) for z in (y, self.shift(y)))  # (N, c, T, H, W)
        motion = F.pad(after[:, :, 1:] - now[:, :, :-1], (0, 0, 0, 0, 0, 1))  # 0 for the last frame
        motion = self.conv1x1(motion.transpose(1, 2).flatten(0, 1))  # (N*T, C, H, W)
        return motion if self.stride == 1 else F.max_pool2d(motion, self.stride)


def _split(x: Tensor, num_segments: int) -> Tensor:
    if x.shape[0] % num_segments:
        raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {num_segments}")
    return x.unflatten(0, (-1, num_segments))  # (N, T, C, H, W)
