"""Clips per second of training from image files: ``python -m benchmarks.loader [MODEL ...]``.

It draws videos of 48 JPEG frames of 427x240 px, or uses the training list of a dataset. main.py's loader reads clips of
uint8 from them, and main.py's step trains on these clips. Each row has the clips per second of this training, the same
without the time that the step waits for clips, the share of the time that is spent waiting, the clips per second of the
loader alone (with the copy to the device), and those of the step alone (with clips that are on the device). The videos
are in memory, so the disk is not measured. The time starts with the first batch, because main.py starts the loading
processes only once in a run.
"""

import argparse
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from data import DatasetConfig, load_dataset_config
from data.pixels import PIXELS
from engine.flags import check_model_names
from engine.loading import clips_on_device, processes_and_cores, training_data
from engine.memory import keep_freed_memory
from engine.step import train_step
from engine.workers import batches

from .input import draw_videos
from .measure import add_clip_flags, machine_and_clips, medians
from .training import Trainer

COLUMNS = ("network", "pixels", "loading processes", "clips/s", "without waiting", "share of time waiting")
COLUMNS += ("loader alone, clips/s", "step alone, clips/s")


class Epoch(NamedTuple):
    """The times of a pass over a loader, from its first batch on."""

    clips: int
    seconds: float
    waited: float  # seconds


def long_list(config: DatasetConfig, folder: Path, clips: int) -> DatasetConfig:
    """A dataset whose training list has ``clips`` lines, which repeat the lines of the dataset."""
    lines = Path(config.train_list).read_text(encoding="utf-8").splitlines()
    file = folder / "long.txt"
    file.write_text("".join(f"{lines[k % len(lines)]}\n" for k in range(clips)), encoding="utf-8")
    return replace(config, train_list=str(file))


def one_pass(loader: DataLoader, trainer: Trainer, training: bool) -> Epoch:
    """Move all clips of a loader to the device, and train on them if ``training`` is true."""
    device, modality = trainer.device, loader.dataset.modality
    feed, waited, done, start = clips_on_device(batches(loader), device), 0.0, 0, None
    for _ in range(loader.batch_sampler.steps):
        before = time.perf_counter()
        clips, labels, *_ = next(feed)
        clips, labels = modality.normalise(clips), labels.to(device, non_blocking=True)
        arrived = time.perf_counter()
        if start is None:  # the first batch also waits for the loading processes to start
            start = arrived
        else:
            waited += arrived - before
        if training:
            train_step(trainer.model, [(clips, labels)], trainer.optimizer, trainer.plan, trainer.precision)
        done += len(labels)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    next(feed, None)  # ends the pass
    return Epoch(done if training else done - len(labels), seconds, waited)


def rows(model: str, dataset: DatasetConfig, args: argparse.Namespace) -> list[list[str]]:
    """The rows of a network, one for each way to compute pixels."""
    settings = {"precision": args.precision, "channels_last": True, "cudnn_benchmark": True, "workers": args.workers}
    settings |= {"input_size": args.size}
    trainer, found = Trainer(model, settings, args), []
    step = args.clips / medians({model: trainer}, 5, args.device)[model]
    for pixels in args.pixels:
        recipe = replace(trainer.recipe, pixels=pixels)
        loader, _ = training_data(dataset, recipe, trainer.plan, trainer.device)
        fed, alone = one_pass(loader, trainer, True), one_pass(loader, trainer, False)
        cells = [model, pixels, str(args.workers), f"{fed.clips / fed.seconds:.1f}"]
        cells += [f"{fed.clips / max(fed.seconds - fed.waited, 1e-9):.1f}", f"{100 * fed.waited / fed.seconds:.0f} %"]
        found.append([*cells, f"{alone.clips / alone.seconds:.1f}", f"{step:.1f}"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: tsn_r50 and rsanet_r50")
    parser.add_argument("--dataset", metavar="FILE.yaml", help="a dataset; default: drawn videos")
    parser.add_argument("--videos", type=int, default=16, metavar="N", help="number of drawn videos (default 16)")
    add_clip_flags(parser, frames=16)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16", "fp16"])
    parser.add_argument("--pixels", nargs="+", default=list(PIXELS), choices=list(PIXELS))
    parser.add_argument(
        "--workers", type=int, default=processes_and_cores()[1], metavar="W", help="default: one per core"
    )
    parser.add_argument("--steps", type=int, default=64, metavar="S", help="steps of a pass over the loader")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    check_model_names(parser, args.models)
    if args.steps < 2:
        parser.error("--steps must be at least 2, because the first step is not timed alone")
    if args.device == "cpu":
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = load_dataset_config(args.dataset or str(draw_videos(folder, args.videos)))
        dataset = long_list(config, folder, args.steps * args.clips)
        print(f"{machine_and_clips(args)}, {args.precision}, {args.steps} steps\n")
        print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
        for model in args.models or ["tsn_r50", "rsanet_r50"]:
            lines = [f"| {' | '.join(cells)} |" for cells in rows(model, dataset, args)]
            print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
