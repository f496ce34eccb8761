"""Gives every network by name: ``torch.hub.load(".", "tsm_r50", source="local", num_classes=174, num_segments=8)``."""

from pathlib import Path as _Path

import models as _models

dependencies = ["torch", "torchvision"]

# The hub puts this folder first on the import path, but modules that are already imported take precedence.
_imported = getattr(_models, "__file__", None) or "a folder without __init__.py"
if _Path(_imported).parent.resolve() != _Path(__file__).parent.resolve() / "models":
    raise ImportError(
        f"a package 'models' is imported already ({_imported}), so that of {_Path(__file__).parent} cannot be; "
        "load the network in a program that imports no other package of this name"
    )


def _entry(name: str):
    def entry(num_classes: int, num_segments: int, weights: str | None = None, **options):
        model = _models.build_model(name, num_classes, num_segments, **options)
        if weights is not None:
            _models.load_weights(model, weights)
        return model

    entry.__name__ = name
    entry.__doc__ = f"""{name}: clips (N, T, 3, H, W), ImageNet-normalised -> logits (N, K). Call ``.eval()`` to test.

    Args:
        num_classes, num_segments: K and T.
        weights: a file for ``load_weights``, or None for random weights.
        options: those of ``build_model``, such as ``pretrained`` and ``in_channels``.

    Errors: ``ValueError`` for settings, ``WeightsError`` for a file that does not fit.
    """
    return entry


# The hub lists every callable of this file whose name does not start with an underscore.
globals().update({name: _entry(name) for name in _models.list_models()})
