"""SDA-TSN and SDA-TSM (ACM Multimedia 2021): SDA after bn2 in every bottleneck."""

from ops import SDA

from .resnet import VideoResNet
from .tsn import tsm, tsn

RELEASED_SEGMENTS = 8  # num_segments is a constant in the released networks' call of SDA


def sda_tsn(backbone: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """TSN with SDA. Options: those of ``insert_sda`` and ``VideoResNet``."""
    return _with_sda(tsn, backbone, num_classes, num_segments, **options)


def sda_tsm(backbone: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """TSM with SDA. Options: those of ``insert_sda``, ``fold_div`` and those of ``VideoResNet``."""
    return _with_sda(tsm, backbone, num_classes, num_segments, **options)


def insert_sda(
    model: VideoResNet,
    sda_segments: int | None = None,
    reduction: int = 4,
    dependencies: tuple[str, ...] = ("LST", "LT", "LS", "S122"),
    aggregation: str = "query",
    squeeze: str = "avg",
) -> None:
    """Put an SDA module after bn2 of every bottleneck.

    ``sda_segments``: frames that SDA sees as one clip. ``None`` is what the released networks do: 8, so that a
    16-frame network runs SDA on two halves of a clip (8 + 8), and the clip itself where 8 does not divide it, which
    the released code cannot run. ``sda_segments=16`` is the whole clip of a 16-frame network.
    """
    frames = model.num_segments
    if sda_segments is None:
        sda_segments = frames if frames % RELEASED_SEGMENTS else RELEASED_SEGMENTS
    if frames % sda_segments:
        raise ValueError(f"sda_segments={sda_segments} must divide num_segments={frames}, or SDA would mix videos")
    for _, _, block in model.blocks():
        channels = block.conv2.out_channels
        block.sda = SDA(channels, sda_segments, reduction, tuple(dependencies), aggregation, squeeze)


def _with_sda(family, backbone, num_classes, num_segments, **options):
    sda_names = ("sda_segments", "reduction", "dependencies", "aggregation", "squeeze")
    sda_options = {name: options.pop(name) for name in sda_names if name in options}
    model = family(backbone, num_classes, num_segments, **options)
    insert_sda(model, **sda_options)
    return model
