"""3-D convolution of clips that are given as frames: the operator of C3D's ResNet, of I3D and of slow networks.

"C3D" is the network that the GST paper (ICCV 2019, arXiv 1909.13130) compares with, its Fig. 2 (a): in every
bottleneck of a ResNet, the 3x3 convolution is a 3x3x3 convolution. It is not the VGG-like network of Sports-1M.
"""

import torch
from torch import Tensor, nn


class ClipConv3d(nn.Conv3d):
    """A 3-D convolution over the T frames of each clip, without bias. T does not change.

    In time and space it pads with zeros, so that the first and the last frame of a clip have one neighbour. If the
    frames are in channels_last memory, the clips are in channels_last_3d memory, and nothing is copied between the two
    views. The initialisation is Kaiming's for the outputs (``fan_out``), as in the released networks.

    Args:
        in_channels, out_channels: C and C'.
        num_segments: T, the number of frames of a clip.
        kernel_size: three odd numbers, for time, height and width: (3, 3, 3) in C3D, (3, 1, 1) in slow networks.
        stride: in height and width.

    Shapes: ``(N*T, C, H, W) -> (N*T, C', H', W')``.

    Errors: ``ValueError`` if a number of the kernel size is even, or if the number of frames is not a multiple of
    ``num_segments``.
    """

    not_in_imagenet = ()  # prefixes of the tensors that do not start from the weight of a 2-D convolution

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_segments: int,
        kernel_size: tuple[int, int, int] = (3, 3, 3),
        stride: int = 1,
    ):
        if len(kernel_size) != 3 or not all(size % 2 for size in kernel_size):
            raise ValueError(f"kernel_size={tuple(kernel_size)} must be three odd numbers, or H and W would change")
        padding = tuple(size // 2 for size in kernel_size)
        super().__init__(in_channels, out_channels, kernel_size, (1, stride, stride), padding, bias=False)
        self.num_segments = num_segments
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % self.num_segments:
            raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {self.num_segments}")
        clips = x.unflatten(0, (-1, self.num_segments)).transpose(1, 2)  # (N, C, T, H, W)
        return super().forward(clips).transpose(1, 2).flatten(0, 1)  # (N*T, C', H', W')

    def from_imagenet(self, weight: Tensor) -> dict[str, Tensor]:
        """The start from a 2-D convolution ``weight`` (C', C, k, k): each frame of the kernel holds a T-th of it.

        On a clip of equal frames, all but the ends then give the output of the 2-D convolution.
        """
        frames = self.kernel_size[0]
        return {"weight": torch.stack([weight / frames] * frames, dim=2)}  # (C', C, T, k, k)
