"""TANet (ICCV 2021): TAM before conv2 in every bottleneck."""

from ops import TAM

from .layout import Layout, State
from .resnet import VideoResNet, options_of


def tanet(size: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """TSN with a temporal adaptive module between the first ReLU and conv2 of every bottleneck.

    The parameters depend on the number of frames. The options are the arguments of ``ops.TAM`` and ``VideoResNet``.
    """
    tam_options = options_of(TAM, options, besides=("channels",))
    model = VideoResNet(size, num_classes, num_segments, **options)
    model.insert("before_conv2", "tam", lambda block: TAM(block.conv2.in_channels, num_segments, **tam_options))
    return model


def _is_released(state: State) -> bool:
    return any(".tam.G." in key for key in state) and any(".net.conv1." in key for key in state)


# The release puts torchvision's bottleneck (``net``) and the module (``tam``) side by side in a new block.
TAM_LAYOUT = Layout(
    "TAM",
    mark=_is_released,
    rename=lambda key: key.replace(".net.", "."),
    model=lambda state: "tanet_r50" if _is_released(state) else None,
)
