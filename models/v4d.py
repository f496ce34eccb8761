"""V4D (ICLR 2020): a slow-only ResNet on units of a video, with residual 4-D blocks over the units in res3."""

import re

from torch import Tensor, nn
from torch.nn import functional as F

from ops import R4D, ClipConv3d

from .layout import Layout, State
from .resnet import Bottleneck, VideoResNet

RES3 = 1
R4D_AFTER = (1, 3)  # the bottlenecks (counted from 0) of res3 that R4D follows. The tiny network has only the first.
TEMPORAL = (2, 3)  # the stages (res4 and res5) whose conv1 is a 3x1x1 convolution
OUR_INDEX = (0, 1, 1, 2, 3, 3)  # the release stores res3 as six parts: blocks 0 and 1, R4D, blocks 2 and 3, R4D


def v4d(size: str, num_classes: int, num_segments: int, units: int = 4, **options) -> VideoResNet:
    """V4D.

    Args:
        num_segments: all frames of a video, unit by unit.
        units: U. The residual 4-D blocks connect the units of T = ``num_segments / units`` frames, and all other
            operations see each unit alone. The weights do not depend on U and T.
        options: the arguments of ``VideoResNet``. As released, dropout is the same for all frames of a unit.

    Errors: ``ValueError`` if ``num_segments`` is not a multiple of ``units``.
    """
    model = VideoResNet(size, num_classes, num_segments, **options)
    r4d_places = [(RES3, index) for index in R4D_AFTER]
    model.insert("after_block", "tsa", lambda block: R4D(block.conv3.out_channels, num_segments, units), r4d_places)
    frames = num_segments // units

    def temporal(block: Bottleneck) -> ClipConv3d:
        return ClipConv3d(block.conv1.in_channels, block.conv1.out_channels, frames, kernel_size=(3, 1, 1))

    places = [(stage, index) for stage, index, _ in model.blocks() if stage in TEMPORAL]
    model.insert("conv1", "conv1", temporal, places)
    model.base_model.fc = UnitDropout(model.base_model.fc.p, frames)
    return model


class UnitDropout(nn.Dropout):
    """Dropout of the features of frames, the same for all frames of a unit: ``(N*U*T, F) -> the same``.

    The release averages the features of a unit, then drops, then classifies. The classifier is linear, so the mean of
    the logits over frames is the same.
    """

    def __init__(self, p: float, frames: int):
        super().__init__(p)
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        units = x.unflatten(0, (-1, self.frames)).mT  # (N*U, F, T)
        return F.dropout1d(units, self.p, self.training).mT.flatten(0, 1)  # (N*U*T, F)


def _our_name(key: str) -> str:
    found = re.fullmatch(r"(base_model\.layer2\.)([0-5])(\..*)", key)
    return f"{found[1]}{OUR_INDEX[int(found[2])]}{found[3]}" if found else key


def _our_tensor(key: str, value: Tensor) -> Tensor:
    """R4D's weight as (C, C, U, T, 1). Networks without the fast implementation store (U, C, C, T, 1, 1)."""
    return value.permute(1, 2, 0, 3, 4, 5).squeeze(-1) if key.endswith(".tsa.weight") and value.dim() == 6 else value


def _is_v4d(state: State) -> bool:
    return "base_model.layer2.5.tsa.weight" in state


V4D_LAYOUT = Layout(
    "V4D",
    mark=_is_v4d,
    rename=_our_name,
    convert=_our_tensor,
    model=lambda state: "v4d_r50" if _is_v4d(state) else None,
)
