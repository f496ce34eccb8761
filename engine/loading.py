"""Loaders of training and validation clips, and what the machine must have for them."""

import os
import shutil

import torch
from torch.utils.data import DataLoader

from data import DatasetConfig, EvalDataset, TrainDataset, collate, read_list
from data.modality import Modality

from . import distributed
from .batch import BatchPlan, StepSampler
from .config import ConfigError, Recipe
from .interrupt import leave_signals_to_the_main_process
from .log import info

PREFETCH = 2  # batches that each worker has ready
SHARED_MEMORY = "/dev/shm"


def make_loader(
    dataset: torch.utils.data.Dataset, workers: int, device: torch.device, collate_fn=collate, **batching
) -> DataLoader:
    """A loader of our datasets; ``batching``: ``batch_sampler`` or ``batch_size``."""
    return DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=device.type == "cuda",
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=leave_signals_to_the_main_process,
        # Its own, or each new pass over the loader would draw from the one that dropout draws from.
        generator=torch.Generator(),
        **batching,
    )


def training_data(
    dataset: DatasetConfig, recipe: Recipe, plan: BatchPlan, device: torch.device
) -> tuple[DataLoader, EvalDataset]:
    """The training loader (its ``batch_sampler`` is a ``StepSampler``) and the validation set.

    Errors: ``DataError`` for a list that cannot be used, ``ConfigError`` for too few videos or too little memory.
    """
    modality = Modality(recipe.modality, recipe.data_length)
    source = {"root": dataset.root, "image_tmpl": dataset.image_tmpl, "num_segments": recipe.num_segments}
    train_set = TrainDataset(
        read_list(dataset.train_list, dataset.num_classes),
        **source,
        resize=recipe.train_resize,
        input_size=recipe.input_size,
        flip=recipe.flip,
        mirror_pairs=dataset.mirror_pairs,
        seed=recipe.seed,
        modality=modality,
    )
    val_set = EvalDataset(
        read_list(dataset.val_list, dataset.num_classes),
        **source,
        resize=recipe.val_resize,
        crop_size=recipe.val_crop,
        input_size=recipe.input_size,
        short_videos=recipe.val_short_videos,
        modality=modality,
    )
    if len(train_set) < plan.global_batch:
        raise ConfigError(
            f"{dataset.train_list}: {len(train_set)} videos are fewer than one batch of {plan.global_batch}; "
            "lower --global_batch_size or --batch_size"
        )
    check_shared_memory(recipe.workers, plan.per_process * clip_bytes(train_set))
    sampler = StepSampler(len(train_set), plan, distributed.rank(), recipe.seed)
    return make_loader(train_set, recipe.workers, device, batch_sampler=sampler), val_set


def clip_bytes(dataset: TrainDataset | EvalDataset) -> int:
    """What one clip, or view, of a dataset takes as uint8."""
    return dataset.num_segments * dataset.modality.stored_channels * dataset.input_size**2


def check_shared_memory(workers: int, batch_bytes: int, folder: str = SHARED_MEMORY) -> None:
    """Loading processes hand batches over in shared memory; without room they die of a bus error, later.

    Errors: ``ConfigError`` if the batches that the workers of this node keep ready do not fit.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    needed = processes * workers * PREFETCH * batch_bytes
    if workers and os.path.isdir(folder) and (free := shutil.disk_usage(folder).free) < needed:
        raise ConfigError(
            f"{folder} has {free / 1e6:.0f} MB free, {processes} x {workers} loading processes need {needed / 1e6:.0f} "
            "MB; give the container more (docker run --shm-size), or lower --workers or --batch_size"
        )


def describe_workers(workers: int) -> None:
    """Say so if the node has fewer cores than its training processes have workers."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if processes * workers > cores:
        info(f"workers: {processes} x {workers} loading processes on {cores} cores; lower --workers if loading is slow")
