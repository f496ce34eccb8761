"""Temporal excitation and aggregation (TEA, CVPR 2020) in plain PyTorch.

A TEA block is a Res2Net bottleneck. Motion excitation follows its first convolution. Multiple temporal aggregation
replaces its 3x3 convolution: the channels are split into groups, and each group has a convolution over time and one
over space. The text of the paper was not at hand: everything follows the released code, also where the paper is said
to differ. Letters: N clips, T frames, C channels, c reduced channels.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MotionExcitation(nn.Module):
    r"""Motion excitation (ME; paper section 3.1): scales the channels of a frame by its motion to the next frame.

    .. math::
        Y &= \mathrm{BN}(W_{red} X) \qquad D_t = W_{dw} * Y_{t+1} - Y_t \qquad D_T = 0 \\
        A &= \sigma(\mathrm{BN}(W_{exp}\, \mathrm{avgpool}(D))) - 0.5 \qquad Z = X + X \odot A

    This is the released code. In third-party notes on the paper, A is ``2 * sigmoid - 1``, which is twice as strong.
    The last frame has no next frame, but its A is not 0: the BN shifts it.

    Args:
        channels: C of the input.
        num_segments: T, the number of frames of a clip.
        reduction: Y has ``max(C // reduction, 1)`` channels.

    Shapes: ``(N*T, C, H, W) -> (N*T, C, H, W)``.

    Errors: ``ValueError`` if the number of frames is not a multiple of ``num_segments``.
    """

    def __init__(self, channels: int, num_segments: int, reduction: int = 16):
        super().__init__()
        reduced = max(channels // reduction, 1)
        self.num_segments = num_segments
        self.conv1 = nn.Conv2d(channels, reduced, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(reduced)
        self.conv2 = nn.Conv2d(reduced, reduced, 3, padding=1, groups=reduced, bias=False)
        self.conv3 = nn.Conv2d(reduced, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(_checked(x, self.num_segments)))  # (N*T, c, H, W)
        # The mean of a difference is the difference of the means, so the maps are not subtracted.
        now, after = (z.mean((2, 3)).unflatten(0, (-1, self.num_segments)) for z in (y, self.conv2(y)))  # (N, T, c)
        motion = F.pad(after[:, 1:] - now[:, :-1], (0, 0, 0, 1)).flatten(0, 1)  # (N*T, c)
        gate = self.bn3(self.conv3(motion[:, :, None, None])).sigmoid()  # (N*T, C, 1, 1)
        return x * (gate + 0.5)


class TemporalShiftConv(nn.Conv1d):
    """The convolution over time of TEA: three frames, each channel alone, zeros beyond the clip, no bias.

    It starts as a temporal shift and is trained. By default, the first half of the channels starts with the next
    frame and the second half with the previous frame, as for the group without a 3x3 convolution.

    Args:
        channels: C.
        num_segments: T, the number of frames of a clip.
        fold_div: the first ``1/fold_div`` of the channels starts with the next frame, the next ``1/fold_div`` with
            the previous one, and the others with their own. ``None``: all start with their own frame.

    ``weight`` has the shape (C, 1, 3). Shapes: ``(N*T, C, H, W) -> (N*T, C, H, W)``.

    Errors: ``ValueError`` if the number of frames is not a multiple of ``num_segments``.
    """

    def __init__(self, channels: int, num_segments: int, fold_div: int | None = 2):
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.num_segments = num_segments
        fold = channels // fold_div if fold_div else 0
        starts = torch.tensor([2] * fold + [0] * fold + [1] * (channels - 2 * fold))  # the tap that starts with 1
        with torch.no_grad():
            self.weight.copy_(F.one_hot(starts, 3)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        clips = _checked(x, self.num_segments).unflatten(0, (-1, self.num_segments)).flatten(3).transpose(1, 2)
        # A 2-D convolution of (N, C, T, H*W): for frames in channels_last memory, this is a view.
        y = F.conv2d(clips, self.weight[..., None], padding=(1, 0), groups=self.groups)
        return y.transpose(1, 2).unflatten(3, x.shape[2:]).flatten(0, 1)  # (N*T, C, H, W)


def multiple_temporal_aggregation(
    x: Tensor,
    shifts: Sequence[TemporalShiftConv],
    convs: Sequence[nn.Module],
    bns: Sequence[nn.Module],
    pool: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Multiple temporal aggregation (MTA; paper section 3.2) of G groups of channels.

    .. math:: O_0 = f_0(X_0) \qquad O_i = f_i(X_i + O_{i-1}) \qquad O_{G-1} = S_{G-1}(X_{G-1})

    with :math:`f_i = \mathrm{ReLU} \circ \mathrm{BN} \circ \mathrm{conv}_i \circ S_i`. The last group has no 3x3
    convolution. The first block of a stage has a ``pool`` for the last group, and no sums: ``O_i = f_i(X_i)``.

    Args:
        x: (N*T, C, H, W). C is a multiple of G.
        shifts: the G convolutions over time S.
        convs, bns: the G - 1 convolutions over space, and their norms.
        pool: reduces the last group in the same way as the ``convs`` reduce the others. ``None``: the block is not the
            first one of its stage.

    Returns: (N*T, C, H', W').
    """
    *groups, last = x.chunk(len(shifts), dim=1)
    done: list[Tensor] = []
    for group, shift, conv, bn in zip(groups, shifts, convs, bns, strict=False):
        summed = group + done[-1] if done and pool is None else group
        done.append(F.relu_(bn(conv(shift(summed)))))
    last = shifts[-1](last)
    return torch.cat([*done, last if pool is None else pool(last)], dim=1)


def _checked(x: Tensor, num_segments: int) -> Tensor:
    if x.shape[0] % num_segments:
        raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {num_segments}")
    return x
