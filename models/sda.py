"""SDA-TSN and SDA-TSM (ACM Multimedia 2021): SDA after bn2 in every bottleneck."""

from ops import SDA

from .layout import Layout
from .resnet import VideoResNet, options_of
from .tsn import tsm, tsn

RELEASED_SEGMENTS = 8  # the released networks pass this constant to SDA for any number of frames
STRAY = ("total_ops", "total_params")  # entries of the package thop in the released files


def sda_tsn(size: str, num_classes: int, num_segments: int, sda_segments: int | None = None, **options) -> VideoResNet:
    """TSN with SDA.

    The options are ``sda_segments`` (see ``insert_sda``) and the options of ``ops.SDA`` and ``tsn``.
    """
    sda_options = options_of(SDA, options, besides=("channels",))
    return insert_sda(tsn(size, num_classes, num_segments, **options), sda_segments, **sda_options)


def sda_tsm(size: str, num_classes: int, num_segments: int, sda_segments: int | None = None, **options) -> VideoResNet:
    """TSM with SDA.

    The options are ``sda_segments`` (see ``insert_sda``) and the options of ``ops.SDA`` and ``tsm``.
    """
    sda_options = options_of(SDA, options, besides=("channels",))
    return insert_sda(tsm(size, num_classes, num_segments, **options), sda_segments, **sda_options)


def insert_sda(model: VideoResNet, sda_segments: int | None = None, **sda_options) -> VideoResNet:
    """Put an SDA module after bn2 of every bottleneck, and return the model.

    Args:
        sda_segments: the number of frames that SDA sees as one clip. ``None`` does the same as the released networks:
            SDA sees 8 frames, so a 16-frame network applies SDA to the two halves of a clip separately. If the number
            of frames is not a multiple of 8, SDA sees the whole clip (the released code cannot run such a network).
            With ``sda_segments=16``, the SDA of a 16-frame network sees the whole clip.
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


# A released SDA file can belong to SDA-TSN or SDA-TSM. It does not say which, because a shift has no parameters.
SDA_LAYOUT = Layout(
    "SDA",
    mark=lambda state: any(_is_stray(key) for key in state),
    rename=lambda key: None if _is_stray(key) else key,
)
