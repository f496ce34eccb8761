"""Temporal enhancement and interaction (TEI, AAAI 2020, arXiv 1911.09435) in plain PyTorch, the module of TEINet.

The authors released no code, so this module is a reconstruction. Its structure and its place follow from the published
number of parameters. The order of W3 and the sigmoid in ``MEM`` could not be verified, so there are two readings.
Letters: N videos, T frames, C channels.
"""

import torch
from torch import Tensor, nn

READINGS = ("paper", "thirdparty")


class MEM(nn.Module):
    r"""Motion enhancement: gate the channels of each frame by the difference from the next frame.

    .. math::
        d_t = W_2 p_{t+1} + b_2 - W_1 p_t - b_1 \qquad
        a_t = \sigma(W_3 d_t + b_3) \qquad u_t = a_t \odot x_t \ (t < T - 1) \qquad u_{T-1} = x_{T-1}

    p is the mean of x over H and W. The last frame has no next frame, so it does not change.

    Args:
        channels: C of the input.
        reduction: d has ``C // reduction`` channels.
        reading: ``"paper"`` is the formula above. ``"thirdparty"`` is the only public implementation, in which
            ``a = W3 sigmoid(d) + b3``: these factors have no bounds.

    Shapes: ``(N, T, C, H, W) -> (N, T, C, H, W)``.
    """

    def __init__(self, channels: int, reduction: int = 8, reading: str = "paper"):
        super().__init__()
        if reading not in READINGS:
            raise ValueError(f"reading={reading!r} must be one of {READINGS}")
        self.reading = reading
        reduced = channels // reduction
        self.fc1 = nn.Linear(channels, reduced)
        self.fc2 = nn.Linear(channels, reduced)
        self.fc3 = nn.Linear(reduced, channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((3, 4), dtype=self.fc1.weight.dtype)  # (N, T, C)
        with torch.autocast(x.device.type, enabled=False):  # the branch is tiny, so it keeps the weights' precision
            motion = self.fc2(pooled[:, 1:]) - self.fc1(pooled[:, :-1])  # (N, T-1, C // reduction)
            gate = self.fc3(motion).sigmoid() if self.reading == "paper" else self.fc3(motion.sigmoid())
        gate = torch.cat([gate, torch.ones_like(pooled[:, :1])], dim=1)  # (N, T, C)
        return x * gate.to(x.dtype)[..., None, None]

    def extra_repr(self) -> str:
        return f"reading={self.reading!r}"


class TIM(nn.Module):
    """Temporal interaction: a depthwise convolution over three frames, with zeros outside the clip and no bias.

    It starts as a temporal shift (TSM): the first eighth of the channels takes the next frame, the second eighth the
    previous frame, and the others stay.

    Shapes: ``(N, T, C, H, W) -> (N, T, C, H, W)``.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), groups=channels, bias=False)
        fold = channels // 8
        with torch.no_grad():
            weight = self.dwconv.weight.zero_()  # (C, 1, 3, 1)
            weight[:fold, :, 2] = 1
            weight[fold : 2 * fold, :, 0] = 1
            weight[2 * fold :, :, 1] = 1

    def forward(self, x: Tensor) -> Tensor:
        # If the frames are in channels_last memory, so is this image of height T and width H*W, and nothing is copied.
        y = self.dwconv(x.transpose(1, 2).flatten(3))  # (N, C, T, H*W)
        return y.unflatten(3, x.shape[3:]).transpose(1, 2)


class TEI(nn.Module):
    """Motion enhancement, then temporal interaction (``MEM``, ``TIM``).

    There is no identity start: with the reading of the paper, the gates of a new module are near 0.5.

    Args:
        channels: C of the input.
        num_segments: T.
        reduction, reading: see ``MEM``.

    Shapes: ``(N*T, C, H, W) -> (N*T, C, H, W)``.

    Errors: ``ValueError`` for an unknown reading, or if the number of frames is not a multiple of ``num_segments``.
    """

    def __init__(self, channels: int, num_segments: int, reduction: int = 8, reading: str = "paper"):
        super().__init__()
        self.num_segments = num_segments
        self.mem = MEM(channels, reduction, reading)
        self.tim = TIM(channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % self.num_segments:
            raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {self.num_segments}")
        return self.tim(self.mem(x.unflatten(0, (-1, self.num_segments)))).flatten(0, 1)
