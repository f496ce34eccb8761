"""The networks: torchvision's ResNet with operators inserted."""

from .families import Family, register
from .layout import Layout
from .registry import build_model, list_models
from .resnet import VideoResNet
from .weights import LoadReport, WeightsError, load_weights

__all__ = [
    "Family",
    "Layout",
    "LoadReport",
    "VideoResNet",
    "WeightsError",
    "build_model",
    "list_models",
    "load_weights",
    "register",
]
