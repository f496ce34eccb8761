"""GST and GST-Large (ICCV 2019): a spatial and a spatial-temporal convolution replace conv2 of every bottleneck."""

from ops import GST

from .layout import Layout, State
from .resnet import Bottleneck, VideoResNet, options_of

FIRST = "base_model.layer1.0.conv2.weight"
# The inputs of the first spatial convolution of a ResNet-50 tell which network a file holds.
MODELS = {(48, 32): "gst_r50", (48, 64): "gst_large_r50"}


def gst(size: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """GST. The options are ``alpha`` and ``beta`` of ``ops.GST`` and the arguments of ``VideoResNet``."""
    gst_options = options_of(GST, options, besides=("in_channels", "out_channels", "stride"))

    def make(block: Bottleneck) -> GST:
        conv = block.conv2
        return GST(conv.in_channels, conv.out_channels, num_segments, conv.stride[0], **gst_options)

    model = VideoResNet(size, num_classes, num_segments, **options)
    model.insert("conv2", "conv2", make)
    return model


def gst_large(size: str, num_classes: int, num_segments: int, beta: int = 1, **options) -> VideoResNet:
    """GST-Large: GST whose two convolutions both see all input channels. The options are those of ``gst``."""
    return gst(size, num_classes, num_segments, beta=beta, **options)


def _our_name(key: str) -> str:
    return key.replace(".conv2.", ".conv2.spatial.").replace(".Tconv.", ".conv2.temporal.")


def _model(state: State) -> str | None:
    return MODELS.get(tuple(state[FIRST].shape[:2])) if _is_gst(state) and FIRST in state else None


def _is_gst(state: State) -> bool:
    return any(key.endswith(".Tconv.weight") for key in state)


GST_LAYOUT = Layout("GST", mark=_is_gst, rename=_our_name, model=_model)
