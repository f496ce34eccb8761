"""The residual 4-D block of V4D (ICLR 2020, arXiv 2002.07442, section 3.2) in plain PyTorch.

A video is cut into U action units of T frames each. The block convolves over units and frames at each pixel, so that a
unit sees the units before and after it.
"""

from torch import Tensor, nn


class R4D(nn.Conv3d):
    r"""A residual convolution over (unit, frame) at each pixel, without bias, norm and ReLU (Eq. 4):

    .. math:: y = x + W_{3 \times 3 \times 1 \times 1} * x

    A 3x3x1x1 convolution over (U, T, H, W) is a 3x3x1 convolution over (U, T, H*W). It pads with zeros, so that the
    first and the last unit have one neighbour. As released, the weight (C, C, 3, 3, 1) has PyTorch's initialisation. It
    is not zero, so the block does not start as the identity.

    The convolution gets contiguous memory, as released, also if the frames are in channels_last memory. PyTorch's
    channels_last_3d kernels for this shape make a training step up to 1.6 times as long on a CPU. The output has the
    memory layout of the input.

    Args:
        channels: C.
        num_segments: U * T, all frames of a video. Their order is unit by unit.
        units: U.

    Shapes: ``(N*U*T, C, H, W) -> (N*U*T, C, H, W)``.

    Errors: ``ValueError`` if ``num_segments`` is not a multiple of ``units``, or the number of frames not one of
    ``num_segments``.
    """

    def __init__(self, channels: int, num_segments: int, units: int = 4):
        if units < 1 or num_segments % units:
            raise ValueError(f"num_segments={num_segments} must be a multiple of units={units}: U units of T frames")
        super().__init__(channels, channels, (3, 3, 1), padding=(1, 1, 0), bias=False)
        self.num_segments, self.units = num_segments, units

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % self.num_segments:
            raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {self.num_segments}")
        videos = x.unflatten(0, (-1, self.units, self.num_segments // self.units))  # (N, U, T, C, H, W)
        videos = videos.flatten(4).permute(0, 3, 1, 2, 4)  # (N, C, U, T, H*W)
        y = super().forward(videos.contiguous()).permute(0, 2, 3, 1, 4)  # (N, U, T, C, H*W)
        return x + y.flatten(0, 2).unflatten(2, x.shape[2:])  # (N*U*T, C, H, W)
