"""C3D's ResNet-50, as the GST paper (ICCV 2019) and SDA's tables compare with: every 3x3 convolution becomes 3x3x3."""

from ops import ClipConv3d

from .layout import Layout, State
from .resnet import Bottleneck, VideoResNet
from .video_network import STEM

FIRST = "base_model.layer1.0.conv2.weight"


def c3d(size: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """The inflated ResNet. The options are the arguments of ``VideoResNet``."""

    def make(block: Bottleneck) -> ClipConv3d:
        conv = block.conv2
        return ClipConv3d(conv.in_channels, conv.out_channels, num_segments, stride=conv.stride[0])

    model = VideoResNet(size, num_classes, num_segments, **options)
    model.insert("conv2", "conv2", make)
    return model


def _our_name(key: str) -> str:
    return key.replace(".convT.op.0.", ".conv2.").replace(".convT.op.1.", ".bn2.")


def _is_c3d(state: State) -> bool:
    """Whether the stem is a 1x7x7 convolution and the first conv2 a 3x3x3 one."""
    state = {_our_name(key): value for key, value in state.items() if key == STEM or ".layer1.0." in key}
    return STEM in state and FIRST in state and state[STEM].dim() == 5 and state[FIRST].shape[2:] == (3, 3, 3)


def _model(state: State) -> str | None:
    return "c3d_r50" if _is_c3d(state) else None


# CAKES, the repository that released the network, has conv2 and bn2 in one module. GST's names are torchvision's.
C3D_LAYOUT = Layout("C3D", mark=_is_c3d, rename=_our_name, model=_model)
