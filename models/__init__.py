"""The networks: operators slotted into torchvision's ResNet."""

from .registry import build_model, list_models
from .weights import LoadReport, WeightsError, load_weights

__all__ = ["LoadReport", "WeightsError", "build_model", "list_models", "load_weights"]
