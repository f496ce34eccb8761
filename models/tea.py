"""TEA (CVPR 2020): motion excitation and multiple temporal aggregation in every block of a Res2Net-50 (26w x 4s)."""

import re

from torch import Tensor, nn

from ops import MotionExcitation, TemporalShiftConv, multiple_temporal_aggregation

from .layout import Layout
from .resnet import Bottleneck, VideoResNet, block_name, options_of
from .video_network import ImageNetFile

WIDTH, GROUPS = 26, 4  # Res2Net's "26w x 4s": each of 4 groups of a block has 26 channels for every 64 of a ResNet
RES2NET50 = ImageNetFile(
    "ImageNet Res2Net-50 (26w x 4s)",
    "https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/res2net50_26w_4s-06e79181.pth",
)


class TEABottleneck(Bottleneck):
    """Res2Net's bottleneck, with motion excitation after conv1 and multiple temporal aggregation for the 3x3s.

    ``convs``, ``bns`` and the other names of the frame network are Res2Net's, so that its ImageNet file fits.
    """

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, *_, **__):
        super().__init__(inplanes, planes, stride, downsample, GROUPS, WIDTH)  # 4 groups make conv1 and conv3 fit
        del self.conv2, self.bn2
        width = self.conv1.out_channels // GROUPS
        spatial = range(GROUPS - 1)  # the last group has no 3x3
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, stride, padding=1, bias=False) for _ in spatial)
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in spatial)
        # The first block of a stage is the one with a downsample. Its average counts the padding, as released.
        self.pool = None if downsample is None else nn.AvgPool2d(3, stride, padding=1)

    def add_time(self, **options) -> None:
        """Add ``me``, with the ``options`` of ``MotionExcitation``, and ``shifts``. ``num_segments`` must be set."""
        channels = self.conv1.out_channels
        self.me = MotionExcitation(channels, self.num_segments, **options)
        folds = [None] * (GROUPS - 1) + [2]  # the last group starts as a shift, the others as the identity
        width = channels // GROUPS
        self.shifts = nn.ModuleList(TemporalShiftConv(width, self.num_segments, fold) for fold in folds)

    def middle(self, y: Tensor) -> Tensor:
        return multiple_temporal_aggregation(self.me(y), self.shifts, self.convs, self.bns, self.pool)


def tea(size: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """TEA. The options are ``reduction`` of ``MotionExcitation`` and the options of ``VideoResNet``.

    The convolutions over space have MSRA's initialisation, as released.
    """
    me_options = options_of(MotionExcitation, options, besides=("channels",))
    model = VideoResNet(size, num_classes, num_segments, block=TEABottleneck, **options)
    model.imagenet = RES2NET50
    for stage, index, block in model.blocks():
        block.add_time(**me_options)
        model.not_in_imagenet += [f"{block_name(stage, index)}{name}." for name in ("me", "shifts")]
    model.freeze()
    return model


TEA_LAYOUT = Layout(
    "TEA",
    mark=lambda state: any(".shifts.0.conv." in key for key in state),
    rename=lambda key: re.sub(r"\.shifts\.(\d)\.conv\.", r".shifts.\1.", key),
    model=lambda state: "tea_r50" if any(key.endswith("layer4.0.shifts.0.conv.weight") for key in state) else None,
)
