"""RSANet (NeurIPS 2021): seven of a ResNet-50's 3x3 convolutions replaced by relational self-attention."""

import torch
from torch import Tensor, nn

from ops import RSA, rsa_backend_reason

from .resnet import VideoResNet

# Bottlenecks, counted from 0 in each of the stages res2 to res5, whose conv2 becomes RSA (supplement, "for every two
# ResNet blocks from the third block in res2 to the second block in res5").
POSITIONS = {"r50": ((2,), (1, 3), (1, 3, 5), (1,)), "tiny": ((1,), (1,), (1,))}


class FrameRSA(RSA):
    """RSA on a batch of frames: ``(N*T, C, H, W) -> (N*T, C', H', W')``."""

    def __init__(self, num_segments: int, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_segments = num_segments

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(0, (-1, self.num_segments)).transpose(1, 2)  # (N, C, T, H, W)
        return super().forward(x).transpose(1, 2).flatten(0, 1)  # (N*T, C', H', W')


def rsanet(
    backbone: str,
    num_classes: int,
    num_segments: int,
    num_heads: int = 8,
    key_dim: int | None = None,
    value_dim: int | None = None,
    latent_dim: int | None = None,
    kernel_size: tuple[int, int, int] = (5, 7, 7),
    kernel_type: str = "VplusR",
    feat_type: str = "VplusR",
    stochastic_depth: float = 0.2,
    **options,
) -> VideoResNet:
    """RSANet. Options: those of ``ops.RSA`` and of ``VideoResNet``.

    Initialisation as released: MSRA for every convolution, zero gamma in the last BN of every bottleneck (ImageNet
    weights overwrite it where there is no RSA), Xavier for the classifier.
    """
    model = VideoResNet(backbone, num_classes, num_segments, stochastic_depth=stochastic_depth, **options)
    for stage, index, block in model.blocks():
        nn.init.zeros_(block.bn3.weight)
        if index in POSITIONS[backbone][stage]:
            block.conv2 = FrameRSA(
                num_segments,
                block.conv2.in_channels,
                block.conv2.out_channels,
                num_heads=num_heads,
                key_dim=key_dim,
                value_dim=value_dim,
                latent_dim=latent_dim,
                kernel_size=kernel_size,
                stride=block.conv2.stride[0],
                kernel_type=kernel_type,
                feat_type=feat_type,
            )
            if block.conv2.out_channels != block.bn2.num_features:
                raise ValueError(
                    f"num_heads {num_heads} x value_dim {value_dim} gives {block.conv2.out_channels} channels, the "
                    f"network has {block.bn2.num_features}; leave value_dim out"
                )
    nn.init.xavier_uniform_(model.new_fc.weight)
    return model


def set_rsa_backend(model: nn.Module, backend: str) -> None:
    """Have every RSA of a network take this path: for tools that must see its operations one by one, "reference"."""
    for module in model.modules():
        if isinstance(module, RSA):
            module.backend = backend


def rsa_backends(model: nn.Module, device: torch.device) -> list[str]:
    """The paths that the RSA of a network take on this device, each with its reason; none without RSA."""
    rsa = [module for module in model.modules() if isinstance(module, RSA)]
    reasons = (rsa_backend_reason(m.backend, device, kernel_type=m.kernel_type, feat_type=m.feat_type) for m in rsa)
    return sorted(set(reasons))
