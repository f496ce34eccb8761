"""TSN (ECCV 2016) and TSM (ICCV 2019): the two baselines of the papers."""

import re

from ops import ShiftedConv2d, TemporalShift

from .layout import Layout
from .resnet import VideoResNet, options_of


def tsn(size: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """Each frame is classified separately, then the logits are averaged.

    The options are the arguments of ``VideoResNet``.
    """
    return VideoResNet(size, num_classes, num_segments, **options)


def tsm(size: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """TSN with a temporal shift in front of conv1 of every bottleneck (TSM's "blockres").

    The options are the arguments of ``TemporalShift`` and ``VideoResNet``.
    """
    shift_options = options_of(TemporalShift, options)
    model = VideoResNet(size, num_classes, num_segments, **options)
    model.insert("conv1", "conv1", lambda block: ShiftedConv2d(block.conv1, num_segments, **shift_options))
    return model


def _released_segments(file_name: str) -> int | None:
    found = re.search(r"_segment(\d+)_", file_name)  # ..._segment8_e45.pth
    return int(found[1]) if found else None


# The released TSM wraps conv1 and the shift in one module. Its part ``net`` is the convolution.
TSM_LAYOUT = Layout(
    "TSM",
    mark=lambda state: any(".conv1.net." in key for key in state),
    rename=lambda key: key.replace(".conv1.net.", ".conv1."),
    model=lambda state: "tsm_r50" if any(key.endswith("layer1.0.conv1.net.weight") for key in state) else None,
    num_segments=_released_segments,
    module=TemporalShift,
)
