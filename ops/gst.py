"""Grouped spatial-temporal aggregation (GST, ICCV 2019, arXiv 1909.13130, section 3) in plain PyTorch.

GST replaces the 3x3 convolution of a bottleneck by two convolutions side by side: a spatial one of each frame and a
spatial-temporal one of three frames. ``alpha`` divides the outputs between them and ``beta`` the inputs.
"""

import torch
from torch import Tensor, nn


class GST(nn.Module):
    r"""Two convolutions side by side, on the first and the last :math:`C/\beta` input channels:

    .. math::
        y = [\, W_{1 \times 3 \times 3} * x_{first} \;;\; W_{3 \times 3 \times 3} * x_{last} \,]

    The first :math:`C'(\alpha - 1)/\alpha` output channels are the spatial ones and the last :math:`C'/\alpha` the
    spatial-temporal ones. Both convolutions have no bias. In time and space they pad with zeros. The initialisation is
    Kaiming's for the outputs (``fan_out``), as released.

    If the frames are in channels_last memory, the clips are in channels_last_3d memory, and both convolutions keep this
    layout.

    Args:
        in_channels, out_channels: C and C'.
        num_segments: T, the number of frames of a clip.
        stride: in height and width. T does not change.
        alpha: one in ``alpha`` output channels is spatial-temporal; 4 in all published networks.
        beta: 2, "GST": each convolution sees its own half of the input channels. 1, "GST-Large": both see all.

    Shapes: ``(N*T, C, H, W) -> (N*T, C', H', W')``.

    Errors: ``ValueError`` if ``alpha`` or ``beta`` does not divide the channels, or if the number of frames is not a
    multiple of ``num_segments``.
    """

    not_in_imagenet = ("temporal.",)  # prefixes of the tensors that do not start from the weight of a 2-D convolution

    def __init__(
        self, in_channels: int, out_channels: int, num_segments: int, stride: int = 1, alpha: int = 4, beta: int = 2
    ):
        super().__init__()
        if alpha < 2 or out_channels % alpha:
            raise ValueError(f"alpha={alpha} must be at least 2 and divide the {out_channels} output channels")
        if beta not in (1, 2) or in_channels % beta:
            raise ValueError(f"beta={beta} must be 1 or 2 and divide the {in_channels} input channels")
        self.num_segments = num_segments
        seen, temporal = in_channels // beta, out_channels // alpha
        self.spatial = nn.Conv2d(seen, out_channels - temporal, 3, stride, 1, bias=False)
        self.temporal = nn.Conv3d(seen, temporal, 3, (1, stride, stride), 1, bias=False)
        for conv in (self.spatial, self.temporal):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % self.num_segments:
            raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {self.num_segments}")
        parts = x.split(self.spatial.in_channels, dim=1)  # one or two of (N*T, C / beta, H, W)
        clips = parts[-1].unflatten(0, (-1, self.num_segments)).transpose(1, 2)  # (N, C / beta, T, H, W)
        temporal = self.temporal(clips).transpose(1, 2).flatten(0, 1)  # (N*T, C' / alpha, H', W')
        return torch.cat([self.spatial(parts[0]), temporal], dim=1)  # (N*T, C', H', W')

    def from_imagenet(self, weight: Tensor) -> dict[str, Tensor]:
        """The start from a 2-D convolution ``weight`` (C', C, 3, 3): a slice of it for the spatial convolution.

        As released, the spatial-temporal convolution keeps its random initialisation.
        """
        return {"spatial.weight": weight[: self.spatial.out_channels, : self.spatial.in_channels]}
