"""TSN (ECCV 2016) and TSM (ICCV 2019): the two networks that the papers are measured against."""

from ops import TemporalShift

from .resnet import VideoResNet


def tsn(backbone: str, num_classes: int, num_segments: int, **options) -> VideoResNet:
    """Frames on their own, logits averaged. Options: those of ``VideoResNet``."""
    return VideoResNet(backbone, num_classes, num_segments, **options)


def tsm(backbone: str, num_classes: int, num_segments: int, fold_div: int = 8, **options) -> VideoResNet:
    """TSN with a temporal shift on the residual branch of every bottleneck, before conv1 (TSM's "blockres")."""
    model = VideoResNet(backbone, num_classes, num_segments, **options)
    for _, _, block in model.blocks():
        block.shift = TemporalShift(num_segments, fold_div)
    return model
