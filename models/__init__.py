"""The networks: torchvision's ResNet with operators inserted."""

from .families import Family, register
from .layout import Layout
from .registry import build_model, list_models
from .resnet import VideoResNet
from .video_network import VideoNetwork
from .weights import LoadReport, WeightsError, load_weights

__all__ = [
    "Family",
    "Layout",
    "LoadReport",
    "VideoNetwork",
    "VideoResNet",
    "WeightsError",
    "build_model",
    "list_models",
    "load_weights",
    "register",
]
