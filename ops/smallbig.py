"""The big view of SmallBigNet (CVPR 2020) in plain PyTorch.

A SmallBig convolution is applied twice with the same weight: to its input (the small view), and to a maximum over
neighbours in space and time (the big view). Each view has its own BN, and the two are added. Letters: N clips, T
frames, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS_LAST = torch.channels_last


class BigPool(nn.Module):
    """The maximum over 3x3 places of 3 neighbouring frames, or of all frames. There are no parameters.

    Args:
        num_segments: T, the number of frames of a clip.
        all_frames: take the maximum over all T frames. The result has one frame for each clip. This is the pool of the
            released third convolution.

    Shapes: ``(N*T, C, H, W) -> (N*T, C, H, W)``, or ``(N, C, H, W)`` with ``all_frames``.

    Errors: ``ValueError`` if the number of frames is not a multiple of ``num_segments``.
    """

    def __init__(self, num_segments: int, all_frames: bool = False):
        super().__init__()
        self.num_segments, self.all_frames = num_segments, all_frames

    def forward(self, x: Tensor) -> Tensor:
        contiguous = not x.is_contiguous(memory_format=CHANNELS_LAST)
        # On a CPU, the kernel for channels_last_3d is faster by more than the two copies cost.
        clips = _as_clips(x.contiguous(memory_format=CHANNELS_LAST), self.num_segments)  # (N, C, T, H, W)
        frames, padding = (self.num_segments, 0) if self.all_frames else (3, 1)
        y = F.max_pool3d(clips, (frames, 3, 3), stride=1, padding=(padding, 1, 1))
        y = y.transpose(1, 2).flatten(0, 1)  # (N*T, C, H, W) or (N, C, H, W)
        return y.contiguous() if contiguous else y

    def extra_repr(self) -> str:
        return f"num_segments={self.num_segments}, all_frames={self.all_frames}"


class GlobalView(nn.Module):
    r"""The global view of the larger released network (``smallbig50_extra``).

    .. math:: Z = X + \mathrm{BN}(W_{exp} (W_{red} X \odot \sigma(W_{red}\, \mathrm{maxpool}(X))))

    The maximum is over all places and frames of a clip. BN starts at zero, so the start is the identity.

    Args:
        channels: C of the input.
        num_segments: T, the number of frames of a clip.
        reduction: the first convolution has ``C // reduction`` output channels.

    Shapes: ``(N*T, C, H, W) -> (N*T, C, H, W)``.

    Errors: ``ValueError`` if the number of frames is not a multiple of ``num_segments``.
    """

    def __init__(self, channels: int, num_segments: int, reduction: int = 4):
        super().__init__()
        self.num_segments = num_segments
        self.reduce = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.expand = nn.Conv2d(channels // reduction, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        for conv in (self.reduce, self.expand):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        largest = F.adaptive_max_pool2d(x, 1)  # (N*T, C, 1, 1)
        # As in the release, the gradient goes to the first of equal frames; amax() would share it.
        largest = _as_clips(largest, self.num_segments).max(2).values  # (N, C, 1, 1)
        gate = self.reduce(largest).sigmoid()[:, None]  # (N, 1, C/r, 1, 1)
        y = self.reduce(x).unflatten(0, (-1, self.num_segments)) * gate  # (N, T, C/r, H, W)
        return x + self.bn(self.expand(y.flatten(0, 1)))


def _as_clips(x: Tensor, num_segments: int) -> Tensor:
    if x.shape[0] % num_segments:
        raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {num_segments}")
    return x.unflatten(0, (-1, num_segments)).transpose(1, 2)  # (N, C, T, H, W)
