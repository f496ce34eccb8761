"""Builds and checks everything that a training run needs, before anything is written."""

import argparse
import dataclasses
import platform
import random
import shlex
from dataclasses import dataclass

import numpy as np
import torch
import torchvision
import yaml
from torch.utils.data import DataLoader

from data import DatasetConfig, EvalDataset, load_dataset_config
from data.description import OVERRIDES
from data.labels import describe_flip
from data.pixels import describe as describe_pixels
from data.video_list import fingerprint
from reports.accuracy import describe_top5

from . import config, distributed, flags
from .batch import BatchPlan, plan_batch
from .compile import choose_compilation
from .config import ConfigError, Recipe
from .data_check import check_files
from .loading import check_clips, check_lists, describe_workers, training_data
from .log import info
from .network import build_for_training
from .optim import build_optimizer
from .precision import Precision
from .resume import Start, go_on
from .state import TrainingState, average_weights

ALLOWED = ("allow_overlap", "allow_two_labels")
KEPT = (*OVERRIDES, *ALLOWED, "skip_data_check")  # the flags about the dataset that a resumed run keeps


@dataclass
class Run:
    """Everything that training needs. ``settings`` holds everything that the run depends on, in plain values."""

    recipe: Recipe
    plan: BatchPlan
    train_loader: DataLoader
    val_set: EvalDataset
    state: TrainingState
    compiled: bool  # whether training uses torch.compile
    settings: dict
    settings_yaml: str


def prepare(args: argparse.Namespace, start: Start, device: torch.device) -> Run:
    """Prepare the run of a command line. A resumed run keeps its settings unless the command line changes them.

    Errors: ``DataError``, ``ConfigError`` and ``WeightsError``. They name the problem and the remedy.
    """
    dataset, given = choose_dataset(args, start)
    recipe, plan, batch_line = make_recipe(args, dataset, start)
    precision = Precision(recipe.precision, device)
    precision.apply()
    train_loader, val_set = training_data(dataset, recipe, plan, device)
    train_set = train_loader.dataset
    settings = {
        "dataset": dataclasses.asdict(dataset),
        "model": args.model,
        "variant": args.variant or start.settings.get("variant"),
        "recipe": config.to_plain(recipe),
        # The flags of all command lines of this run. A resumed run keeps them.
        "flags": start.flags(dataset.name) | given | flags.given_recipe_flags(args),
        "lists": {"training videos": fingerprint(train_set.videos), "validation videos": fingerprint(val_set.videos)},
        "processes": distributed.world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
    }
    settings_yaml = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=1000)
    info(settings_yaml)
    info(describe_flip(recipe.flip, dataset.categories, dataset.mirror_pairs))
    info(val_set.modality.describe(val_set.source))
    info(describe_pixels(recipe.pixels))
    info(batch_line)
    info(describe_top5(dataset.num_classes))
    describe_workers(recipe.workers)
    compiled, reason = choose_compilation(recipe, args.model, device, len(train_set))
    info(reason)
    if distributed.is_main():
        check_lists(dataset, train_set.videos, val_set.videos, **{key: given.get(key, False) for key in ALLOWED})
        if not given.get("skip_data_check"):
            remedy = command_of_check(args.dataset, {key: given[key] for key in OVERRIDES if key in given})
            lists = list(settings["lists"].values())
            check_files(dataset, train_set.videos, val_set.videos, lists, recipe.on_bad_video, remedy)
        check_clips(val_set, recipe.on_bad_video, recipe.workers)

    random.seed(recipe.seed)
    np.random.seed(recipe.seed)  # noqa: NPY002  no code here draws from it; code that a user adds may
    model = build_for_training(args.model, dataset.num_classes, recipe, device, with_weights=not start.path)
    averaged = average_weights(model, recipe.ema_decay)
    state = TrainingState(model, build_optimizer(model, recipe), precision, averaged)
    if start.path:
        go_on(state, start, settings)
    return Run(recipe, plan, train_loader, val_set, state, compiled, settings, settings_yaml)


def choose_dataset(args: argparse.Namespace, start: Start) -> tuple[DatasetConfig, dict]:
    """The dataset and the flags about it: the flags given now, and the flags that the run was started with."""
    now = {key: getattr(args, key) for key in KEPT if getattr(args, key)}
    dataset = load_dataset_config(args.dataset, **{key: now.get(key) for key in OVERRIDES})
    before = start.flags(dataset.name)
    given = {key: before[key] for key in KEPT if key in before} | now
    if given != now:
        dataset = load_dataset_config(args.dataset, **{key: given.get(key) for key in OVERRIDES})
    return dataset, given


def command_of_check(dataset: str, places: dict[str, str]) -> str:
    """The command that finds all errors of a dataset and writes corrected lists."""
    given = [f"--{key} {shlex.quote(value)}" for key, value in places.items()]
    return " ".join(["python -m scripts.check_dataset", shlex.quote(dataset), *given, "--fix"])


def make_recipe(args: argparse.Namespace, dataset: DatasetConfig, start: Start) -> tuple[Recipe, BatchPlan, str]:
    """The recipe with the flags applied, the batch plan of a step, and a line about both for the log."""
    given = flags.given_recipe_flags(args)
    variant = args.variant if args.variant != start.settings.get("variant") else None
    try:
        before = config.load_recipe(args.model, dataset.name, variant, start.recipe)
    except ConfigError as error:
        raise ConfigError(f"{start.path}: {error}" if start.path else str(error)) from None
    recipe = config.load_recipe(args.model, dataset.name, variant, start.recipe, **given)
    plan = plan_batch(recipe.global_batch_size, recipe.batch_size, distributed.world_size())
    recipe.global_batch_size, scaling = plan.global_batch, ""
    lr_was_chosen = "lr" in start.flags(dataset.name) or "lr" in given
    if plan.global_batch != before.global_batch_size and recipe.scale_lr and not lr_was_chosen:
        recipe.lr = before.lr * plan.global_batch / before.global_batch_size
        ratio = f"{plan.global_batch} / {before.global_batch_size}"
        scaling = f" ({before.lr:g} x {ratio}; --scale_lr false keeps {before.lr:g})"
    return recipe, plan, f"batch: {plan}, lr {recipe.lr:g}{scaling}"
