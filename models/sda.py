"""SDA-TSN and SDA-TSM (ACM Multimedia 2021): SDA after bn2 in every bottleneck."""

from ops import SDA

from .layout import Layout
from .resnet import VideoResNet, options_of
from .tsn import tsm, tsn

RELEASED_SEGMENTS = 8  # the released networks pass this constant to SDA, whatever their number of frames
STRAY = ("total_ops", "total_params")  # what the package thop left beside the parameters in the released files


def sda_tsn(size: str, num_classes: int, num_segments: int, sda_segments: int | None = None, **options) -> VideoResNet:
    """TSN with SDA. Options: ``sda_segments`` (see ``insert_sda``), those of ``ops.SDA`` and of ``tsn``."""
    sda_options = options_of(SDA, options)
    return insert_sda(tsn(size, num_classes, num_segments, **options), sda_segments, **sda_options)


def sda_tsm(size: str, num_classes: int, num_segments: int, sda_segments: int | None = None, **options) -> VideoResNet:
    """TSM with SDA. Options: ``sda_segments`` (see ``insert_sda``), those of ``ops.SDA`` and of ``tsm``."""
    sda_options = options_of(SDA, options)
    return insert_sda(tsm(size, num_classes, num_segments, **options), sda_segments, **sda_options)


def insert_sda(model: VideoResNet, sda_segments: int | None = None, **sda_options) -> VideoResNet:
    """Put an SDA module after bn2 of every bottleneck, and return the model.

    Args:
        sda_segments: the number of frames that SDA sees as one clip. ``None`` does what the released networks do: SDA
            sees 8 frames, so a 16-frame network runs SDA on two halves of a clip (8 + 8). If 8 does not divide the
            number of frames, which the released code cannot run, SDA sees the whole clip. ``sda_segments=16`` is the
            whole clip of a 16-frame network.
        sda_options: options of ``ops.SDA``.

    Errors: ``ValueError`` if ``sda_segments`` does not divide the model's number of frames.
    """
    frames = model.num_segments
    if sda_segments is None:
        sda_segments = frames if frames % RELEASED_SEGMENTS else RELEASED_SEGMENTS
    if frames % sda_segments:
        raise ValueError(f"sda_segments={sda_segments} must divide num_segments={frames}, or SDA would mix videos")
    model.insert("after_bn2", "sda", lambda block: SDA(block.conv2.out_channels, sda_segments, **sda_options))
    return model


def _is_stray(key: str) -> bool:
    return key.rpartition(".")[2] in STRAY


# A released SDA file does not tell whether its network is SDA-TSN or SDA-TSM: a shift has no parameters.
SDA_LAYOUT = Layout(
    "SDA",
    mark=lambda state: any(_is_stray(key) for key in state),
    rename=lambda key: None if _is_stray(key) else key,
)
