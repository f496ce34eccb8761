"""TIN (AAAI 2020): temporal interlacing before conv1 in every bottleneck."""

import re

from ops import TIN

from .layout import Layout, State
from .resnet import VideoResNet, options_of


def tin(size: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """TSN with temporal interlacing at the start of the residual branch of every bottleneck.

    The parameters depend on the number of frames. The options are the arguments of ``ops.TIN`` and ``VideoResNet``.
    """
    tin_options = options_of(TIN, options, besides=("channels",))
    model = VideoResNet(size, num_classes, num_segments, **options)
    model.insert("before_conv1", "shift", lambda block: TIN(block.conv1.in_channels, num_segments, **tin_options))
    return model


# Both known layouts wrap conv1: ``net1`` is the module and ``net2`` the convolution. The patterns are tried in order.
RENAMED = {
    r"\.conv1\.net1\.biasnet\.net\.conv\.": ".shift.offset.conv.",  # the authors' release
    r"\.conv1\.net1\.biasnet\.net\.fc\.": ".shift.offset.fc1.",
    r"\.conv1\.net1\.biasnet\.net\.lastlayer\.": ".shift.offset.fc2.",
    r"\.conv1\.net1\.weightnet\.net\.lastlayer\.": ".shift.weight.conv.",
    r"\.conv1\.net2\.": ".conv1.",
    r"\.conv1\.conv\.net1\.(offset|weight)_net\.": r".shift.\1.",  # MMAction2
    r"\.conv1\.conv\.net2\.": ".conv1.",
    r"\.downsample\.conv\.": ".downsample.0.",
    r"\.downsample\.bn\.": ".downsample.1.",
    r"\.conv(\d)\.conv\.": r".conv\1.",
    r"\.conv(\d)\.bn\.": r".bn\1.",
    r"^backbone\.": "base_model.",
    r"^cls_head\.fc_cls\.": "new_fc.",
}


def _our_name(key: str) -> str:
    for pattern, name in RENAMED.items():
        key = re.sub(pattern, name, key)
    return key


def _is_released(state: State) -> bool:
    return any(".net1.biasnet." in key or ".net1.offset_net." in key for key in state)


TIN_LAYOUT = Layout(
    "TIN",
    mark=_is_released,
    rename=_our_name,
    model=lambda state: "tin_r50" if _is_released(state) else None,
)
