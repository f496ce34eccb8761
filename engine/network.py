"""Builds the network that a recipe or a checkpoint describes."""

import torch
from torch import nn

from data import DataError, DatasetConfig
from data.modality import Modality
from models import WeightsError, build_model, list_models, load_weights
from models.video_network import VideoNetwork
from models.weight_files import shown_name
from models.weights import check_weights, load_imagenet, released_model, released_segments, stored_classes

from .config import ConfigError, Recipe, check_key, load_recipe
from .log import info
from .stored import SETTINGS, check_entries


def build_from_recipe(name: str, num_classes: int, recipe: Recipe) -> VideoNetwork:
    """Call ``build_model`` with the recipe's settings, without weights.

    Errors: ``ConfigError`` with the settings if the network cannot be built with them.
    """
    options = {
        "num_segments": recipe.num_segments,
        "in_channels": Modality(recipe.modality, recipe.data_length).channels,
        "dropout": recipe.dropout,
        "stochastic_depth": recipe.stochastic_depth,
        "partial_bn": recipe.partial_bn,
        "frozen_stages": recipe.frozen_stages,
        "norm_eval": recipe.norm_eval,
        **({"units": recipe.units} if recipe.units else {}),
        **recipe.model_options,
    }
    try:
        return build_model(name, num_classes, **options)
    except WeightsError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be built with {options}: {error}") from None


def build_from_checkpoint(
    checkpoint: dict,
    source: str,
    name: str | None,
    frames: int | None,
    dataset: DatasetConfig | None,
    units: int | None = None,
) -> tuple[VideoNetwork, Recipe]:
    """The network of a checkpoint, without its weights, and the recipe that trained it.

    Args:
        checkpoint: the content of a weights file.
        source: the name of the file in messages.
        name, frames: the model and its number of frames, if the user gives them. Otherwise the checkpoint gives them.
        dataset: the dataset of the test, if there is one.
        units: the number of units of a clip, if it is another than in training. Each unit keeps its number of frames.

    If the checkpoint does not hold its recipe, the recipe of its model is used.

    Errors: ``ConfigError`` if the checkpoint contradicts the user or the dataset, or holds too little information.
    """
    trained = run_settings(checkpoint, source)
    own = trained["model"]
    if name and own in list_models() and name != own:
        raise ConfigError(f"{source}: holds {own}, not {name}; leave --model out")
    name = name or own or released_model(checkpoint, source)
    if name is None:
        known = ", ".join(list_models())
        raise ConfigError(f"{source}: does not say which model it holds; name it with --model ({known})")
    check_key(name, list_models(), f"model in {source}" if name == own else "model")
    # An older file may lack keys, which are then taken from the model's recipe. It may also have keys that are unknown
    # now.
    kept = trained["recipe"] if name == own else {}
    frames = frames or kept.get("num_segments") or released_segments(source)
    if frames is None:
        raise ConfigError(f"{source}: does not say how many frames it was trained on; give --num_segments")
    held = stored_classes(checkpoint, source)
    classes = dataset.num_classes if dataset else held
    if classes is None:
        raise ConfigError(f"{source}: holds no classifier of ours; train the network first, with main.py")
    categories = trained["dataset"].get("categories")
    if categories and held and len(categories) != held:
        raise ConfigError(
            f"{source}: config.dataset.categories are {len(categories)} names, its classifier has {held} classes; "
            "give a checkpoint as main.py wrote it, or its state_dict alone"
        )
    where = dataset.name if dataset else trained["dataset"].get("name", "")
    try:
        recipe = load_recipe(name, where, kept=kept, num_segments=frames)
        if units is not None and units != recipe.units:
            if not recipe.units:
                raise ConfigError(f"{name} has no units, and the test asks for {units}; choose another protocol")
            frames = units * (recipe.num_segments // recipe.units)
            recipe = load_recipe(name, where, kept=kept, num_segments=frames, units=units)
        with torch.device("meta"):  # without memory, because a file may describe a network of any size
            check_weights(build_from_recipe(name, classes, recipe), checkpoint, source)
    except WeightsError:
        raise
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{source}: {shown_name(str(error), 500)}") from None
    except Exception as error:  # the model_options of a file may cause any error in the network
        reason = shown_name(f"{type(error).__name__}: {error}", 200)
        raise ConfigError(f"{source}: its recipe describes no network ({reason}); load its state_dict alone") from error
    return build_from_recipe(name, classes, recipe), recipe


def run_settings(checkpoint: dict, source: str = "checkpoint") -> dict:
    """``model``, ``recipe`` and ``dataset`` of the run that wrote a checkpoint. Missing settings are empty.

    Errors: ``ConfigError`` if main.py cannot have written these settings.
    """
    check_entries(checkpoint, SETTINGS, source)
    stored, arch = checkpoint.get("config", {}), checkpoint.get("arch")
    settings = {"model": stored.get("model") or (arch if arch in list_models() else None)}
    return settings | {key: stored.get(key, {}) for key in ("recipe", "dataset")}


def build_for_training(
    name: str, num_classes: int, recipe: Recipe, device: torch.device, with_weights: bool
) -> VideoNetwork:
    """The network of a recipe on its device, in training mode, with the recipe's options set.

    If ``with_weights`` is true, load ``recipe.tune_from`` or ``recipe.pretrained``. A resumed run loads its checkpoint
    instead.

    Errors: ``ConfigError`` if options exclude each other, ``WeightsError`` if weights do not fit.
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
    model.activation_checkpointing(recipe.activation_checkpointing)
    model = model.to(device)
    for line in model.describe_backends(device):
        info(line)
    if recipe.channels_last:
        channels_last(model)
    torch.backends.cudnn.benchmark = recipe.cudnn_benchmark
    return model.train()


def channels_last(model: nn.Module) -> None:
    """Store 4-D weights in channels_last memory. The outputs of convolutions are then channels_last too.

    ``model.to(memory_format=...)`` cannot be used, because it refuses a network with 5-D weights (RSA, SDA). A 1x1
    weight is the same in both layouts. It keeps its strides, because DistributedDataParallel would otherwise copy its
    gradient in each step.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4 and max(parameter.shape[2:]) > 1:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
