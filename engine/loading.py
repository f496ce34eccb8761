"""Loaders of training and validation clips, and checks of what the machine needs for them."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from data import DataError, DatasetConfig, EvalDataset, TrainDataset, Video, collate, read_list
from data.checks import Finding, list_findings, overlap_findings
from data.dataset import collate_good
from data.modality import Modality
from data.video_list import sample

from . import distributed
from .batch import BatchPlan, StepSampler
from .config import ConfigError, Recipe
from .log import info
from .workers import batches, leave_signals_to_the_main_process

# The log says itself that there are more loading processes than cores.
warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)

PREFETCH = 2  # batches that each worker has ready
SHARED_MEMORY = "/dev/shm"
# The remedies of findings that stop the run, by kind. Findings of other kinds are only logged.
REMEDIES = {
    "two_labels": "correct the list, or allow it with --allow_two_labels",
    "overlap": "correct the lists, or allow it with --allow_overlap",
}


def make_loader(
    dataset: torch.utils.data.Dataset, workers: int, device: torch.device, collate_fn=collate, **settings
) -> DataLoader:
    """A loader of our datasets.

    ``settings`` are arguments of ``DataLoader``: ``batch_sampler`` or ``batch_size``, and others.
    """
    return DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=device.type == "cuda",
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=leave_signals_to_the_main_process,
        # The loader has its own generator. Without it, each pass would take a random number from dropout's generator.
        generator=torch.Generator(),
        **settings,
    )


def clips_on_device(batches: Iterable[tuple], device: torch.device) -> Iterator[tuple]:
    """The batches (clips, ...), with their clips on the device.

    Clips that are no tensor, because none of a batch could be read, are passed on as they are. On a GPU, the next batch
    is copied while the network computes. Therefore the loader is always one batch ahead of the network.
    """
    if device.type != "cuda":
        for clips, *others in batches:
            yield clips.to(device) if isinstance(clips, Tensor) else clips, *others
        return
    copies, current = torch.cuda.Stream(device), None
    for clips, *others in batches:
        with torch.cuda.stream(copies):
            clips = clips.to(device, non_blocking=True) if isinstance(clips, Tensor) else clips
            copied = copies.record_event()
        if current is not None:
            yield _after_copy(*current)
        current = clips, others, copied
    if current is not None:
        yield _after_copy(*current)


def _after_copy(clips: Tensor, others: list, copied: torch.cuda.Event) -> tuple:
    """The batch. The current stream of the GPU waits until its copy has ended."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    if isinstance(clips, Tensor):
        clips.record_stream(stream)  # otherwise its memory could be given to the next copy too early
    return clips, *others


def training_data(
    dataset: DatasetConfig, recipe: Recipe, plan: BatchPlan, device: torch.device
) -> tuple[DataLoader, EvalDataset]:
    """The training loader (its ``batch_sampler`` is a ``StepSampler``) and the validation set.

    The loading processes of the training loader stay for the whole run.

    Errors: ``DataError`` if a list or source cannot be used, ``ConfigError`` if there are too few videos or too little
    memory.
    """
    modality, source = Modality(recipe.modality, recipe.data_length), dataset.open_source()
    train_set = TrainDataset(
        read_list(dataset.train_list, dataset.num_classes),
        source,
        recipe.num_segments,
        resize=recipe.train_resize,
        input_size=recipe.input_size,
        flip=recipe.flip,
        mirror_pairs=dataset.mirror_pairs,
        seed=recipe.seed,
        modality=modality,
        pixels=recipe.pixels,
        frames=recipe.train_frames,
        units=recipe.units,
        crop=recipe.train_crop,
        crop_size=recipe.train_crop_size,
        color_jitter=recipe.color_jitter,
    )
    val_set = EvalDataset(
        read_list(dataset.val_list, dataset.num_classes),
        source,
        recipe.num_segments,
        resize=recipe.val_resize,
        crop_size=recipe.val_crop,
        input_size=recipe.input_size,
        short_videos=recipe.val_short_videos,
        modality=modality,
        pixels=recipe.pixels,
        clip_rule=recipe.val_clip_rule,
        units=recipe.units,
    )
    if len(train_set) < plan.global_batch:
        fitting = 2 ** max(0, len(train_set).bit_length() - 2)  # at least two steps per epoch
        made_by_processes = (recipe.batch_size or 0) * plan.processes >= plan.global_batch
        others = ", or fewer processes or a lower --batch_size" if made_by_processes else ""
        raise ConfigError(
            f"{dataset.train_list}: {len(train_set)} videos are fewer than one batch of {plan.global_batch}; add "
            f"--global_batch_size {fitting} (the learning rate follows it){others}"
        )
    check_shared_memory(recipe.workers, plan.per_process * clip_bytes(train_set))
    sampler = StepSampler(len(train_set), plan, distributed.rank(), recipe.seed)
    collate_fn = collate_good if recipe.on_bad_video == "skip" else collate
    batching = {"batch_sampler": sampler, "persistent_workers": recipe.workers > 0}
    return make_loader(train_set, recipe.workers, device, collate_fn, **batching), val_set


def check_lists(
    dataset: DatasetConfig, train: Sequence[Video], val: Sequence[Video], allow_overlap: bool, allow_two_labels: bool
) -> None:
    """Log what is odd about the lists.

    Errors: ``DataError`` for a finding that is allowed only with a flag, if the flag is not given.
    """
    for videos, file in ((train, dataset.train_list), (val, dataset.val_list)):
        check_list(dataset, videos, file, allow_two_labels)
    _report(overlap_findings(train, val, dataset.root), allow_overlap)


def check_list(dataset: DatasetConfig, videos: Sequence[Video], file: str, allow_two_labels: bool) -> None:
    """``check_lists`` for one list."""
    _report(list_findings(videos, file, dataset.num_classes, dataset.categories, dataset.root), allow_two_labels)


def _report(findings: list[Finding], allowed: bool) -> None:
    """Log the findings.

    Errors: ``DataError`` for the first finding whose kind is in ``REMEDIES``, unless ``allowed`` is true.
    """
    for kind, text in findings:
        if kind in REMEDIES and not allowed:
            raise DataError(f"{text}; {REMEDIES[kind]}")
    for finding in findings:
        info(finding.text)


def check_clips(dataset: EvalDataset, on_bad_video: str, workers: int, count: int = 4) -> None:
    """Read a few videos from across the list before training starts. A crop that does not fit fails on any of them.

    If there are ``workers``, a loading process reads them. A process that has decoded video files itself must not fork
    afterwards: FFmpeg's locks may then block its loading processes for ever.

    Errors: ``DataError`` for the first video that cannot be read. If such videos are skipped, only if none can be read.
    """
    places = sample(len(dataset), count)
    loader = make_loader(Subset(dataset, places), min(workers, 1), torch.device("cpu"), collate_good, batch_size=1)
    errors = [reason for _, unread in batches(loader) for reason in unread.values()]
    if errors and (on_bad_video == "stop" or len(errors) == len(places)):
        raise DataError(errors[0])


def clip_bytes(dataset: TrainDataset | EvalDataset) -> int:
    """The number of bytes of one clip (one view) of a dataset."""
    return dataset.num_segments * dataset.modality.stored_channels * dataset.input_size**2 * dataset.bytes_per_value


def check_shared_memory(workers: int, batch_bytes: int, folder: str = SHARED_MEMORY) -> None:
    """Check that shared memory has room for the batches of the loading processes.

    Without room, these processes would die later of a bus error.

    Errors: ``ConfigError`` if the batches of this node's workers do not fit, or if the memory cannot be written.
    """
    if not workers or not os.path.isdir(folder):
        return
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}), and loading processes hand their batches over there; "
            "mount it writable, or use --workers 0"
        ) from None
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    needed = processes * workers * PREFETCH * batch_bytes
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ConfigError(
            f"{folder} has {free / 1e6:.0f} MB free, {processes} x {workers} loading processes need {needed / 1e6:.0f} "
            "MB; give the container more (docker run --shm-size), or lower --workers or --batch_size"
        )


def describe_workers(workers: int) -> None:
    """Log a line if the node has fewer cores than its training processes have workers."""
    processes, cores = processes_and_cores()
    if processes * workers > cores:
        info(f"workers: {processes} x {workers} loading processes share {cores} cores; more do not load faster")


def advise_on_waiting(workers: int) -> str:
    """Advice for the log if training waits for data."""
    processes, cores = processes_and_cores()
    if processes * (workers + 1) <= cores:
        return f"raise --workers ({workers} now, {cores} cores), store smaller frames, or use a faster disk"
    return f"store smaller frames, or use a machine with more than its {cores} cores or a faster disk"


def processes_and_cores() -> tuple[int, int]:
    """The number of training processes on this node, and the number of cores that they may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)), cores
