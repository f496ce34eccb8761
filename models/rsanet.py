"""RSANet (NeurIPS 2021): relational self-attention replaces seven 3x3 convolutions of a ResNet-50."""

from torch import Tensor, nn

from ops import RSA

from .layout import Layout, State
from .resnet import Bottleneck, VideoResNet, block_name, options_of
from .video_network import STEM

# The bottlenecks (counted from 0) of the stages res2 to res5 whose conv2 becomes RSA. The supplement says: "for every
# two ResNet blocks from the third block in res2 to the second block in res5".
POSITIONS = {"r50": ((2,), (1, 3), (1, 3, 5), (1,)), "tiny": ((1,), (1,), (1,))}


class FrameRSA(RSA):
    """RSA on a batch of frames: ``(N*T, C, H, W) -> (N*T, C', H', W')``."""

    def __init__(self, num_segments: int, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_segments = num_segments

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self._clips(x)).transpose(1, 2).flatten(0, 1)  # (N*T, C', H', W')

    def kernels(self, x: Tensor, *args, **kwargs) -> Tensor:
        """``RSA.kernels`` of a batch of frames ``(N*T, C, H, W)``, which is what ``forward`` takes."""
        return super().kernels(self._clips(x), *args, **kwargs)

    def _clips(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.num_segments)).transpose(1, 2)  # (N, C, T, H, W)


def rsanet(size: str, num_classes: int, num_segments: int, stochastic_depth: float = 0.2, **options) -> VideoResNet:
    """RSANet. The options are the arguments of ``ops.RSA`` and ``VideoResNet``.

    The initialisation is the released one: MSRA for every convolution, zero for the gamma of the last batch norm of
    every bottleneck, and Xavier for the classifier. ImageNet weights overwrite the gammas of bottlenecks without RSA.
    """
    rsa_options = options_of(RSA, options, besides=("in_channels", "out_channels", "stride"))

    def make(block: Bottleneck) -> FrameRSA:
        conv = block.conv2
        rsa = FrameRSA(num_segments, conv.in_channels, conv.out_channels, stride=conv.stride[0], **rsa_options)
        if rsa.out_channels != conv.out_channels:
            raise ValueError(
                f"num_heads {rsa.num_heads} x value_dim {rsa.value_dim} gives {rsa.out_channels} channels, the "
                f"network has {conv.out_channels}; leave value_dim out"
            )
        return rsa

    model = VideoResNet(size, num_classes, num_segments, stochastic_depth=stochastic_depth, **options)
    places = [(stage, index) for stage, indices in enumerate(POSITIONS[size]) for index in indices]
    model.insert("conv2", "conv2", make, places)
    # As released, the whole bottleneck keeps its own initialisation, not only RSA.
    model.not_in_imagenet += [block_name(*place) for place in places]
    for _, _, block in model.blocks():
        nn.init.zeros_(block.bn3.weight)
    nn.init.xavier_uniform_(model.new_fc.weight)
    return model


def _is_released(state: State) -> bool:
    return STEM in state and state[STEM].dim() == 5 and any(".conv2.projection." in key for key in state)


def _model(state: State) -> str | None:
    return "rsanet_r50" if any(key.endswith("layer1.2.conv2.H2.weight") for key in state) else None


# The released network stores its 2-D convolutions, also the first one, as 1xkxk Conv3d.
RSA_LAYOUT = Layout("RSA", mark=_is_released, model=_model)
