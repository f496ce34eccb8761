"""A network as a recipe describes it, ready to be trained."""

import torch
from torch import nn

from data.modality import Modality
from models import WeightsError, build_model, load_weights
from models.resnet import VideoResNet
from models.weights import load_imagenet

from .config import ConfigError, Recipe
from .log import info


def build_from_recipe(name: str, num_classes: int, recipe: Recipe) -> VideoResNet:
    """``build_model`` with the recipe's settings, without weights. Errors: ``ConfigError`` with the settings."""
    options = {
        "num_segments": recipe.num_segments,
        "in_channels": Modality(recipe.modality, recipe.data_length).channels,
        "dropout": recipe.dropout,
        "stochastic_depth": recipe.stochastic_depth,
        "partial_bn": recipe.partial_bn,
        "frozen_stages": recipe.frozen_stages,
        "norm_eval": recipe.norm_eval,
        **recipe.model_options,
    }
    try:
        return build_model(name, num_classes, **options)
    except WeightsError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be built with {options}: {error}") from None


def build_for_training(
    name: str, num_classes: int, recipe: Recipe, device: torch.device, with_weights: bool
) -> VideoResNet:
    """The network on its device, in training mode, with what it starts from and the recipe's switches set.

    ``with_weights``: load ``recipe.tune_from`` or ``recipe.pretrained``; a resumed run has better ones.
    """
    torch.manual_seed(recipe.seed)
    model = build_from_recipe(name, num_classes, recipe)
    if with_weights and recipe.tune_from:
        info(str(load_weights(model, recipe.tune_from, classifier=False)))
    elif with_weights and recipe.pretrained:
        info(str(load_imagenet(model, recipe.pretrained)))
    if recipe.sync_bn:
        if device.type != "cuda":
            raise ConfigError("sync_bn is true, but PyTorch's SyncBatchNorm runs on GPUs alone; use --sync_bn false")
        if recipe.partial_bn:
            raise ConfigError("sync_bn and partial_bn are both true; frozen statistics need no synchronising")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if recipe.compile and recipe.activation_checkpointing:
        raise ConfigError(
            "compile and activation_checkpointing are both true, which PyTorch cannot combine where batch norm must "
            "not count the second pass; choose one"
        )
    model.activation_checkpointing(recipe.activation_checkpointing)
    model = model.to(device)
    if recipe.channels_last:
        channels_last(model)
    torch.backends.cudnn.benchmark = recipe.cudnn_benchmark
    return model.train()  # frozen parameters are frozen in train(), before the optimiser's groups are made


def channels_last(model: nn.Module) -> None:
    """Lay 4-D weights out channels_last, which its convolutions then hand on to their outputs.

    ``model.to(memory_format=...)`` refuses a network that also has 5-D weights (RSA, SDA).
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
