"""Computes a whole training run on many GPUs: ``python -m benchmarks.scaling [MODEL]``.

The speed of one GPU is a measured fact: ``--clips_per_second``, or the table of ``benchmarks.network --out`` from a GPU
(``--measured``). Without it, the program prints the speed of a GPU above which something else is the limit: the
loader, whose speed it measures on one core of this CPU with drawn videos, or the exchange of gradients. A ring
all-reduce of G processes sends 2(G-1)/G of the gradients' bytes from each GPU. DistributedDataParallel exchanges them
during the backward pass, so a step takes the longer of both times at best, and their sum at worst.

``--simulate`` prints the share of time that GPUs wait for data if loading times vary. It needs nothing measured.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import Dataset

from data import collate, load_dataset_config
from engine.batch import BatchPlan, plan_batch
from engine.config import ConfigError, Recipe, load_recipe
from engine.flags import check_model_names
from engine.loading import training_data
from engine.network import build_from_recipe
from engine.schedule import is_validated

from .input import draw_videos, print_table
from .measure import machine
from .waiting import simulate

CLASSES, BYTES = 174, 4  # gradients are float32 in every precision
# Dataset -> training clips, validation clips, and (width, height) of its frames.
DATASETS = {"something_v1": (86_017, 11_522, (176, 100)), "something_v2": (168_913, 24_777, (427, 240))}
# Logs of the authors' RSANet, 16 frames, 8 V100: seconds of a training step and of a validation step, both of 64 clips
# and with the wait for data, and the hours of the whole run. logs/RSA_R50_SSV*_16frames.log of their repository.
AUTHORS = {"something_v1": (1.493, 0.5657, 47.7), "something_v2": (1.099, 1.24, 68.9)}


@dataclass(frozen=True)
class PaperRun:
    """A run of ``recipe`` on ``plan.processes`` GPUs."""

    dataset: str
    recipe: Recipe
    plan: BatchPlan
    gradient_bytes: int

    @property
    def steps(self) -> int:
        """Steps of an epoch. An incomplete last step is left out."""
        return DATASETS[self.dataset][0] // self.plan.global_batch

    @property
    def learning_rate(self) -> float:
        return self.recipe.lr * (self.plan.global_batch / self.recipe.global_batch_size if self.recipe.scale_lr else 1)

    @property
    def clips_per_gpu(self) -> int:
        """Clips of a step that the GPU with the largest share computes."""
        return self.plan.per_process * self.plan.accumulation

    def exchange(self, gb_per_s: float) -> float:
        """Seconds in which a ring all-reduce exchanges the gradients of a step."""
        gpus = self.plan.processes
        return 2 * (gpus - 1) / gpus * self.gradient_bytes / (gb_per_s * 1e9)

    def training_hours(self, step_seconds: float) -> float:
        return self.recipe.epochs * self.steps * step_seconds / 3600

    def validation_hours(self, clips_per_second: float) -> float:
        """Hours of all validations of the run. ``clips_per_second`` is the speed of all GPUs together."""
        validations = sum(is_validated(self.recipe, epoch) for epoch in range(self.recipe.epochs))
        return validations * DATASETS[self.dataset][1] / clips_per_second / 3600


def paper_run(model: str, dataset: str, gpus: int, frames: int | None, batch_size: int | None) -> PaperRun:
    """The run of a model's recipe. ``batch_size`` is main.py's: the most clips of a GPU in one forward pass."""
    recipe = load_recipe(model, dataset, **({"num_segments": frames} if frames else {}))
    with torch.device("meta"):
        network = build_from_recipe(model, CLASSES, recipe).train()
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return PaperRun(dataset, recipe, plan_batch(recipe.global_batch_size, batch_size, gpus), BYTES * trained)


def loader_speed(dataset: str, recipe: Recipe, rounds: int) -> tuple[float, float]:
    """Training and validation clips that one core of this CPU loads in a second.

    The videos are drawn in the frame size of the dataset, and their files are in memory. The seconds are those that the
    process computes, so other processes do not count. The result is a median of ``rounds`` turns.
    """
    torch.set_num_threads(1)

    def speed(clips: Dataset, places: list) -> float:
        times = []
        for _ in range(rounds + 1):
            start = time.process_time()
            collate([clips[place] for place in places])
            times.append(time.process_time() - start)
        return len(places) / statistics.median(times[1:])  # the first turn reads the files

    with tempfile.TemporaryDirectory() as folder:
        drawn = load_dataset_config(str(draw_videos(Path(folder), 4, DATASETS[dataset][2])))
        loader, val_set = training_data(drawn, replace(recipe, workers=0), BatchPlan(4), torch.device("cpu"))
        return speed(loader.dataset, [(0, k) for k in range(4)]), speed(val_set, list(range(4)))


def measured_speed(file: Path, model: str, recipe: Recipe, precision: str) -> tuple[float, float, str]:
    """Training and test clips/s of one GPU from the table of ``benchmarks.network``, and the words that describe it.

    If several rows fit, because an operator has several paths, the fastest is taken.

    Errors: ``ConfigError`` if no row of a GPU fits.
    """
    if not file.is_file():
        raise ConfigError(f"no table {file}; write it on a GPU with 'python -m benchmarks.network --out {file}'")
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    wanted = {"model": model, "num_segments": str(recipe.num_segments), "size": str(recipe.input_size)}
    wanted |= {"precision": precision}
    if rows and not {*wanted, "training_clips_per_second", "test_clips_per_second", "machine"} <= rows[0].keys():
        raise ConfigError(f"{file}: its columns are not those of benchmarks.network; give the file of its --out")
    rows = [row for row in rows if wanted.items() <= row.items() and not row["machine"].startswith("CPU")]
    if not rows:
        words = ", ".join(f"{key} {value}" for key, value in wanted.items())
        raise ConfigError(f"{file}: no row of a GPU has {words}; run benchmarks.network with these on a GPU")
    row = max(rows, key=lambda row: float(row["training_clips_per_second"]))
    told = f"{row['machine']}, {row['clips']} clips of {row['size']} px in a pass, {row['backend']}, {precision}"
    return float(row["training_clips_per_second"]), float(row["test_clips_per_second"]), told


def print_limits(runs: list[PaperRun], loaded: float, args: argparse.Namespace) -> None:
    """Print the clips/s of one GPU above which the loader or the exchange is the limit."""
    head = ["GPUs", "a step", "learning rate", "steps an epoch", f"loader, {args.cores} cores a GPU"]
    rows = []
    for run in runs:
        own = [str(run.plan.processes), str(run.plan), f"{run.learning_rate:g}", f"{run.steps:,}"]
        exchanges = [run.exchange(link) for link in args.link_gb_per_s]
        limits = [f"{run.clips_per_gpu / seconds:,.0f}" if seconds else "none" for seconds in exchanges]
        rows.append([*own, f"{args.cores * loaded:,.0f}", *limits])
    print("A GPU that trains more clips/s than these waits for the loader, or for the exchange at this many GB/s:\n")
    print_table([*head, *(f"exchange, {link:g} GB/s" for link in args.link_gb_per_s)], rows)


def print_runs(runs: list[PaperRun], speed: tuple[float, float | None], loaded: tuple[float, float], args) -> None:
    """Print the time of the run on GPUs of the given training and test speed (clips/s), for each link."""
    head = ["GPUs", "a step", "learning rate", "link, GB/s", "compute, ms", "loader, ms", "exchange, ms", "first limit"]
    rows = []
    for run in runs:
        gpus = run.plan.processes
        ms = {"compute": run.clips_per_gpu / speed[0], "loader": run.clips_per_gpu / (args.cores * loaded[0])}
        validation = run.validation_hours(gpus * min(speed[1], args.cores * loaded[1])) if speed[1] else 0
        for link in args.link_gb_per_s if gpus > 1 else args.link_gb_per_s[:1]:
            ms["exchange"] = run.exchange(link)
            best, worst = max(ms.values()), max(ms["compute"] + ms["exchange"], ms["loader"])
            hours = [run.training_hours(seconds) + validation for seconds in (best, worst)]
            own = [str(gpus), str(run.plan), f"{run.learning_rate:g}", f"{link:g}" if gpus > 1 else "-"]
            own += [f"{1e3 * seconds:.1f}" for seconds in ms.values()] + [max(ms, key=ms.get)]
            shown = [f"{h:.1f}" for h in hours], [f"{gpus * h:.0f}" for h in hours]
            rows.append(own + [" to ".join(dict.fromkeys(ends)) for ends in shown])
    print_table([*head, "hours", "GPU-hours"], rows)
    print("The hours are those of an exchange that is hidden behind the backward pass, and of one that is not.")
    if not speed[1]:
        print("The hours are of training alone; --test_clips_per_second adds the validations.\n")


def print_authors(run: PaperRun) -> None:
    """Print the hours that the authors' own step times give here, beside those of their log."""
    step, test_step, hours = AUTHORS[run.dataset]
    training, validation = run.training_hours(step), run.validation_hours(64 / test_step)
    speeds = f"{64 / step:.1f} clips/s, {64 / test_step:.0f} in validation"
    computed = f"{training:.1f} h and {validation:.1f} h of validation"
    print(f"The authors' steps on 8 V100 ({speeds}) give {computed} here; their log took {hours} h.\n")


def print_dataset(dataset: str, args: argparse.Namespace) -> None:
    runs = [paper_run(args.model, dataset, gpus, args.num_segments, args.batch_size) for gpus in args.gpus]
    recipe, (training_clips, validation_clips, size) = runs[0].recipe, DATASETS[dataset]
    speed, told = (args.clips_per_second, args.test_clips_per_second), "as given"
    if args.measured:
        *speed, told = measured_speed(args.measured, args.model, recipe, args.precision)
    loaded, where = (args.core_clips_per_second,) * 2, "as given"
    if not args.core_clips_per_second:
        loaded = loader_speed(dataset, recipe, args.rounds)
        where = f"measured on one core of this CPU ({machine('cpu')}), drawn frames of {size[0]}x{size[1]} px, "
        where += f"pixels: {recipe.pixels}"
    print(f"{args.model} on {dataset}: {recipe.num_segments} frames, {recipe.epochs} epochs, ", end="")
    print(f"{training_clips:,} training and {validation_clips:,} validation clips; ", end="")
    print(f"gradients: {runs[0].gradient_bytes / 1e6:.1f} MB")
    print(f"One core loads {loaded[0]:.1f} training and {loaded[1]:.1f} validation clips/s, {where}.")
    if speed[0]:
        print(f"One GPU trains {speed[0]:.1f} clips/s, {told}.\n")
        print_runs(runs, speed, loaded, args)
    else:
        print("The speed of a GPU is not given, so no hours are computed.")
        print_limits(runs, loaded[0], args)
    if (args.model, recipe.num_segments, recipe.epochs) == ("rsanet_r50", 16, 80):
        print_authors(paper_run(args.model, dataset, 8, None, None))


def positive(number: Callable) -> Callable:
    def parse(text: str) -> float:
        if not (value := number(text)) > 0:
            raise ValueError
        return value

    parse.__name__ = f"positive {number.__name__}"
    return parse


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    rate, whole = positive(float), positive(int)
    parser.add_argument("model", nargs="?", default="rsanet_r50", metavar="MODEL", help="default: %(default)s")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--gpus", nargs="+", type=whole, default=[1, 8, 32], metavar="G", help="default: 1 8 32")
    parser.add_argument("--num_segments", type=whole, metavar="T", help="default: the recipe's")
    parser.add_argument("--batch_size", type=whole, metavar="B", help="as in main.py")
    parser.add_argument("--clips_per_second", type=rate, metavar="X", help="of one GPU in training, as measured")
    parser.add_argument("--test_clips_per_second", type=rate, metavar="X", help="of one GPU in validation, as measured")
    parser.add_argument("--measured", type=Path, metavar="FILE.csv", help="take both from this table of a GPU")
    parser.add_argument("--precision", default="fp32", help="of the row in --measured (default fp32)")
    parser.add_argument("--cores", type=whole, metavar="C", help="for each GPU; default: the recipe's workers")
    text = "training clips that one core loads; default: measured on one core of this CPU"
    parser.add_argument("--core_clips_per_second", type=rate, metavar="X", help=text)
    text = "slowest link of the ring; nominal: NVLink 4 450, PCIe 4 x16 32, network of 100 Gb/s 12.5, of 10 Gb/s 1.25"
    parser.add_argument("--link_gb_per_s", nargs="+", type=rate, default=[450, 12.5, 1.25], metavar="X", help=text)
    parser.add_argument("--rounds", type=whole, default=7, metavar="R", help="turns of timing the loader (default 7)")
    parser.add_argument("--simulate", action="store_true", help="print the simulated waiting for data instead")
    args = parser.parse_args()
    check_model_names(parser, [args.model])
    try:
        args.cores = args.cores or load_recipe(args.model, args.datasets[0]).workers
        if args.simulate:
            title, *table = simulate(args.gpus, args.cores)
            print(f"{title}\n")
            print_table(*table)
            return
        for dataset in args.datasets:
            print_dataset(dataset, args)
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
