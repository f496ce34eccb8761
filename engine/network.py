"""A network as a recipe describes it."""

from models import WeightsError, build_model
from models.resnet import VideoResNet

from .config import ConfigError, Recipe


def build_from_recipe(name: str, num_classes: int, recipe: Recipe) -> VideoResNet:
    """``build_model`` with the recipe's settings, ImageNet weights aside. Errors: ``ConfigError`` with the settings."""
    options = {
        "num_segments": recipe.num_segments,
        "dropout": recipe.dropout,
        "stochastic_depth": recipe.stochastic_depth,
        "partial_bn": recipe.partial_bn,
        **recipe.model_options,
    }
    try:
        return build_model(name, num_classes, **options)
    except WeightsError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be built with {options}: {error}") from None
