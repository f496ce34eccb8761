"""Names of models."""

import argparse
import difflib
from functools import partial

from .resnet import VideoResNet
from .rsanet import rsanet
from .sda import sda_tsm, sda_tsn
from .tsn import tsm, tsn
from .weights import load_imagenet

FAMILIES = {"tsn": tsn, "tsm": tsm, "sda_tsn": sda_tsn, "sda_tsm": sda_tsm, "rsanet": rsanet}
MODELS = {f"{name}_{size}": partial(family, size) for size in ("r50", "tiny") for name, family in FAMILIES.items()}


def list_models() -> list[str]:
    """The names that ``build_model`` knows."""
    return list(MODELS)


def check_models(parser: argparse.ArgumentParser, names: list[str]) -> None:
    """Errors: the parser's, for a name that is no model's."""
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")


def build_model(
    name: str, num_classes: int, num_segments: int, pretrained: str | None = None, **options
) -> VideoResNet:
    """A network by name; nothing is downloaded unless ``pretrained="imagenet"``.

    Args:
        name: one of ``list_models()``.
        num_classes, num_segments: K and T.
        pretrained: ``None`` for random weights, ``"imagenet"`` for torchvision's ResNet-50 (fetched once, then kept in
            torch's hub folder), or the path of such a file. Operators of the papers, and the whole bottlenecks that
            hold RSA, keep their initialisation.
        options: those of the family's function in ``models/``; ``in_channels``, C, is 3 unless given.

    Returns: ``(N, T, C, H, W) -> (N, K)``. Errors: ``ValueError`` for an unknown name, ``WeightsError`` for a file
    that does not fit.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(MODELS)}"
        raise ValueError(f"unknown model {name!r}; {hint}")
    model = MODELS[name](num_classes=num_classes, num_segments=num_segments, **options)
    model.arch = name
    if pretrained:
        load_imagenet(model, pretrained)
    return model
