"""Models by name."""

import difflib

from .families import models
from .video_network import VideoNetwork
from .weights import load_imagenet


def list_models(toy: bool | None = None) -> list[str]:
    """The names that ``build_model`` knows. ``toy`` chooses the toy networks or the others; ``None`` means both."""
    return [name for name, (family, size) in models().items() if toy is None or (size in family.toy) == toy]


def check_model(name: str) -> None:
    """Check that ``build_model`` knows a name.

    Errors: ``ValueError`` that names the most similar model.
    """
    known = list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"unknown model {name!r}; {hint}")


def build_model(
    name: str, num_classes: int, num_segments: int, pretrained: str | None = None, **options
) -> VideoNetwork:
    """Build a network by its name. Nothing is downloaded unless ``pretrained="imagenet"``.

    Args:
        name: one of ``list_models()``.
        num_classes, num_segments: K and T.
        pretrained: ``None`` for random weights, ``"imagenet"`` for torchvision's ResNet-50 (downloaded once, then kept
            in torch's hub folder), or the path of such a file. The papers' operators keep their initialisation, and so
            do the whole bottlenecks that contain RSA.
        options: the options of the family's function in ``models/``. ``in_channels`` (C) is 3 by default.

    Returns: the network, ``(N, T, C, H, W) -> (N, K)``.

    Errors: ``ValueError`` for an unknown name, ``WeightsError`` if a file does not fit.
    """
    check_model(name)
    family, size = models()[name]
    model = family.build(size, num_classes=num_classes, num_segments=num_segments, **options)
    model.arch = name
    if pretrained:
        load_imagenet(model, pretrained)
    return model
