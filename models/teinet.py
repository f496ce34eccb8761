"""TEINet (AAAI 2020), as reconstructed: TEI before conv1 in every bottleneck."""

from ops import TEI

from .resnet import VideoResNet, options_of


def teinet(size: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """TSN with temporal enhancement and interaction at the start of the residual branch of every bottleneck.

    The authors released neither code nor weights. This place is the only one that gives the published number of
    parameters. The options are the arguments of ``ops.TEI``, of which ``reading`` chooses the unverified formula, and
    ``VideoResNet``.
    """
    tei_options = options_of(TEI, options, besides=("channels",))
    model = VideoResNet(size, num_classes, num_segments, **options)
    model.insert("before_conv1", "tei", lambda block: TEI(block.conv1.in_channels, num_segments, **tei_options))
    return model
