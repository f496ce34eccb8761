"""STM (ICCV 2019): a convolution over time before, and a motion branch beside the 3x3 of every block of a ResNet-50."""

import re

from torch import Tensor

from ops import ChannelwiseMotion, ChannelwiseTemporalConv

from .layout import Layout
from .resnet import Bottleneck, VideoResNet, block_name, options_of
from .video_network import SizeError


class STMBottleneck(Bottleneck):
    """A bottleneck whose conv3 takes the sum of CSTM (``temporal``, conv2, bn2, ReLU) and CMM (``cmm``).

    ``stm`` adds both, because they need T. As released, the sum follows the ReLU.

    Errors: ``SizeError`` if a block with stride 2 gets a map of odd height or width. The released code fails there
    too, because CMM's pool rounds down and the 3x3 rounds up.
    """

    cmm: ChannelwiseMotion

    def middle(self, y: Tensor) -> Tensor:
        height, width = y.shape[2:]
        if self.stride == 2 and (height % 2 or width % 2):
            raise SizeError(
                f"STM cannot halve a map of {height}x{width}, because its two branches round odd sizes differently; "
                "take frames whose height and width are multiples of 32, such as 224 or 256"
            )
        return super().middle(y) + self.cmm(y)


def stm(size: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """STM. The options are ``reduction`` of ``ChannelwiseMotion`` and the options of ``VideoResNet``.

    As released, CMM keeps PyTorch's default initialisation.
    """
    cmm_options = options_of(ChannelwiseMotion, options, besides=("channels", "stride"))
    model = VideoResNet(size, num_classes, num_segments, block=STMBottleneck, **options)
    for stage, index, block in model.blocks():
        block.cmm = ChannelwiseMotion(block.conv2.in_channels, num_segments, block.stride, **cmm_options)
        model.not_in_imagenet.append(f"{block_name(stage, index)}cmm.")
    model.insert(
        "before_conv2", "temporal", lambda block: ChannelwiseTemporalConv(block.conv2.in_channels, num_segments)
    )
    return model


def _our_name(key: str) -> str:
    """``mb.`` is CMM. The ``shift.`` beside it is the convolution over time; CMM has another ``shift.`` inside."""
    return re.sub(r"(layer\d\.\d+)\.shift\.", r"\1.temporal.", key).replace(".mb.", ".cmm.")


STM_LAYOUT = Layout(
    "STM",
    mark=lambda state: any(".mb.stage_conv." in key for key in state),
    rename=_our_name,
    model=lambda state: "stm_r50" if any(key.endswith("layer4.0.mb.stage_conv.weight") for key in state) else None,
)
