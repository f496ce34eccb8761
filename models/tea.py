"""TEA (CVPR 2020): motion excitation and multiple temporal aggregation in every block of a Res2Net-50 (26w x 4s)."""

import re

from torch import Tensor, nn

from ops import MotionExcitation, TemporalShiftConv, multiple_temporal_aggregation

from .layout import Layout, State
from .resnet import Bottleneck, VideoResNet, block_name, options_of
from .video_network import ImageNetFile

WIDTH, GROUPS = 26, 4  # Res2Net's "26w x 4s": each of 4 groups of a block has 26 channels for every 64 of a ResNet
RES2NET50 = ImageNetFile(
    "ImageNet Res2Net-50 (26w x 4s)",
    "https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/res2net50_26w_4s-06e79181.pth",
)


class TEABottleneck(Bottleneck):
    """Res2Net's bottleneck, with motion excitation after conv1 and multiple temporal aggregation for the 3x3s.

    ``convs``, ``bns`` and the other names of the frame network are Res2Net's, so that its ImageNet file fits. ``tea``
    adds ``me`` and ``shifts``, because they need T.
    """

    me: MotionExcitation
    shifts: nn.ModuleList

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, *_, **__):
        super().__init__(inplanes, planes, stride, downsample, GROUPS, WIDTH)  # 4 groups make conv1 and conv3 fit
        del self.conv2, self.bn2
        width = self.conv1.out_channels // GROUPS
        spatial = range(GROUPS - 1)  # the last group has no 3x3
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, stride, padding=1, bias=False) for _ in spatial)
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in spatial)
        # The first block of a stage is the one with a downsample. Its average counts the padding, as released.
        self.pool = None if downsample is None else nn.AvgPool2d(3, stride, padding=1)

    def middle(self, y: Tensor) -> Tensor:
        return multiple_temporal_aggregation(self.me(y), self.shifts, self.convs, self.bns, self.pool)


def tea(size: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """TEA. The options are ``reduction`` of ``MotionExcitation`` and the options of ``VideoResNet``.

    The initialisation is the released one: MSRA for every convolution over space, and the convolutions over time start
    as the identity, but that of the last group as a temporal shift of all its channels.
    """
    me_options = options_of(MotionExcitation, options, besides=("channels",))
    model = VideoResNet(size, num_classes, num_segments, block=TEABottleneck, **options)
    model.imagenet = RES2NET50
    for stage, index, block in model.blocks():
        channels = block.conv1.out_channels
        block.me = MotionExcitation(channels, num_segments, **me_options)
        block.shifts = nn.ModuleList(
            TemporalShiftConv(channels // GROUPS, num_segments, fold_div=2 if group == GROUPS - 1 else None)
            for group in range(GROUPS)
        )
        model.not_in_imagenet += [f"{block_name(stage, index)}{name}." for name in ("me", "shifts")]
    model.freeze()
    return model


def _is_released(state: State) -> bool:
    return any(".shifts.0.conv." in key for key in state)


TEA_LAYOUT = Layout(
    "TEA",
    mark=_is_released,
    rename=lambda key: re.sub(r"\.shifts\.(\d)\.conv\.", r".shifts.\1.", key),
    model=lambda state: "tea_r50" if any(key.endswith("layer4.0.shifts.0.conv.weight") for key in state) else None,
)
