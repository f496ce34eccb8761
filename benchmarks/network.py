"""Size, cost and clips per second of each network beside plain TSN: ``python -m benchmarks.network [MODEL ...]``.

The networks take turns in one process, training (``main.py``'s step) or testing, with the same clips, precision and
memory layout. The relative speed is a ratio of medians. Multiply-adds are of one clip of 224 px. On a GPU only TSN
and one other network are in memory at a time (``--one_by_one``), and TSN is timed again beside each network. A GPU's
table also has the peak memory of a pass, which does not count weights, gradients and the optimiser's state. With
``--compile`` the last column has the seconds of a compiled network's first training step and first test pass together.
``python -m figs.draw_compared`` draws the table of ``--out`` beside published accuracies.
"""

import argparse
import csv
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from engine.flags import check_model_names
from engine.memory import keep_freed_memory
from models import build_model, list_models
from models.costs import costs
from ops.rsa import BACKENDS

from .measure import machine, machine_and_clips, medians, peak_memory
from .training import Trainer

CLASSES = 174  # Something-Something's
COLUMNS = ("model", "backend", "parameters", "multiply_adds", "training_share", "test_share")
COLUMNS += ("training_clips_per_second", "test_clips_per_second")
COLUMNS += ("num_segments", "size", "clips", "precision", "machine")
COLUMNS += ("compiled", "training_peak_mb", "test_peak_mb", "compile_seconds")
PASSES = ("training", "test")
COMPILED = {"false": (False,), "true": (True,), "both": (False, True)}


class Variant(NamedTuple):
    """A row of the table: a network, RSA's path in it, and whether it is compiled."""

    model: str
    backend: str = "auto"
    compiled: bool = False

    @property
    def name(self) -> str:
        parts = [self.model, "" if self.backend == "auto" else self.backend, "compiled" if self.compiled else ""]
        return ", ".join(filter(None, parts))


class Measured(NamedTuple):
    """The figures of a variant. ``seconds`` and ``peaks`` (MB) are those of a training step and of a test pass."""

    seconds: list[float]
    peaks: list[float] | None = None  # only on a GPU
    compiling: float | None = None  # seconds, only if the network is compiled


def passes(variant: Variant, args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Two functions: one training step and one forward pass of a network."""
    settings = {"precision": args.precision, "channels_last": args.channels_last, "cudnn_benchmark": True}
    trainer = Trainer(variant.model, settings | {"compile": variant.compiled}, args)
    network, ((clips, _),) = trainer.model, trainer.batches
    network.set_backend(variant.backend)

    def test():
        network.eval()
        with torch.no_grad(), trainer.precision.autocast():
            network(clips)
        network.train()

    return dict(zip(PASSES, (trainer, test), strict=True))


def first_calls(runs: dict[str, Callable[[], None]], device: str) -> float:
    """The seconds of the first calls of a compiled network, which compile it."""
    start = time.perf_counter()
    for run in runs.values():
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(variants: list[Variant], args: argparse.Namespace) -> dict[Variant, Measured]:
    """The figures of networks that take turns."""
    networks = {variant: passes(variant, args) for variant in variants}
    compiling = {variant: first_calls(networks[variant], args.device) for variant in variants if variant.compiled}
    seconds, peaks = [], []
    for kind in PASSES:
        runs = {variant: networks[variant][kind] for variant in variants}
        seconds.append(medians(runs, args.rounds, args.device))
        if args.device == "cuda":
            peaks.append({variant: peak_memory(run, args.device) for variant, run in runs.items()})
    return {
        variant: Measured([x[variant] for x in seconds], [x[variant] for x in peaks] or None, compiling.get(variant))
        for variant in variants
    }


def count(model: str, args: argparse.Namespace) -> tuple[int, float]:
    """The parameters of a network, and the multiply-adds of a clip of 224 px, whatever the size of the timed clips."""
    with torch.device(args.device):
        return costs(build_model(model, CLASSES, args.num_segments), args.num_segments, size=224)


def variants_of(model: str, args: argparse.Namespace) -> list[Variant]:
    """The rows of a network. A path of RSA that cannot be used on this device has none, and a line says why."""
    device, backends = torch.device(args.device), []
    with torch.device("meta"):
        network = build_model(model, CLASSES, args.num_segments)
    for backend in args.rsa_backends if network.describe_backends(device) else ["auto"]:
        network.set_backend(backend)
        found = network.describe_backends(device)
        if all(line.partition(": ")[2].startswith(f"{backend} (") for line in found):
            backends.append(backend)
        else:
            print(f"left out: {model}, {backend}: {found[0]}", file=sys.stderr, flush=True)
    return [Variant(model, backend, compiled) for backend in backends for compiled in COMPILED[args.compile]]


def heading(plain: str, args: argparse.Namespace) -> str:
    """The line about the machine and the clips, and the first two lines of the table."""
    layout = "channels_last" if args.channels_last else "contiguous"
    columns = ["network", "parameters", "G multiply-adds", f"training, share of {plain}", "test, share"]
    columns += ["peak MB, training", "peak MB, test"] if args.device == "cuda" else []
    columns += ["first calls, s"] if args.compile != "false" else []
    return (
        f"{machine_and_clips(args)}, {args.precision}, {layout}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    )


def row(variant: Variant, found: Measured, plain: Measured, counts: tuple, args: argparse.Namespace) -> tuple:
    """The row of a variant in the printed table, and in the CSV file. ``plain`` was timed beside it."""
    parameters, multiply_adds = counts
    shares = [expected / seconds for expected, seconds in zip(plain.seconds, found.seconds, strict=True)]
    rates = [args.clips / seconds for seconds in found.seconds]
    shown = [variant.name, f"{parameters:,}", f"{multiply_adds / 1e9:.2f}", *(f"{share:.2f}" for share in shares)]
    if args.device == "cuda":
        shown[-2:] = [f"{share} ({rate:.1f} clips/s)" for share, rate in zip(shown[-2:], rates, strict=True)]
        shown += [f"{peak:.0f}" for peak in found.peaks]
    if args.compile != "false":
        shown.append("" if found.compiling is None else f"{found.compiling:.0f}")
    values = [variant.model, variant.backend, parameters, multiply_adds, *(f"{x:.4g}" for x in (*shares, *rates))]
    values += [args.num_segments, args.size, args.clips, args.precision, machine(args.device)]
    values += [str(variant.compiled).lower(), *(f"{peak:.1f}" for peak in found.peaks or ())]
    values += [""] * (len(COLUMNS) - 1 - len(values))
    return f"| {' | '.join(shown)} |", [*values, "" if found.compiling is None else f"{found.compiling:.1f}"]


def table(models: list[str], plain: str, args: argparse.Namespace) -> list[list]:
    """Print the table of one precision and number of frames; returns its rows for the CSV file."""
    base, lines = Variant(plain), []
    groups = [[base], *(list(dict.fromkeys([base, *variants_of(model, args)])) for model in models)]
    groups = groups[plain in models :]  # TSN is in every group
    if not args.one_by_one:
        groups = [list(dict.fromkeys(variant for group in groups for variant in group))]
    counts = {}
    print(heading(plain, args), flush=True)
    for i, group in enumerate(groups):
        torch.compiler.reset()  # otherwise Dynamo compiles a function only for the first few networks that share it
        counts |= {variant.model: count(variant.model, args) for variant in group if variant.model not in counts}
        found = measure(group, args)
        rows = [
            row(variant, found[variant], found[base], counts[variant.model], args)
            for variant in group
            if i == 0 or variant != base  # TSN has one row
        ]
        if rows:
            print("\n".join(line for line, _ in rows), flush=True)
        lines += [values for _, values in rows]
    return lines


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all but the toy networks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    precisions = ["fp32", "tf32", "bf16", "fp16"]
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=precisions, help="a table for each")
    parser.add_argument("--channels_last", type=lambda x: x == "true", default=True, metavar="true|false")
    parser.add_argument("--keep_freed_memory", type=lambda x: x == "true", default=True, metavar="true|false")
    parser.add_argument("--rsa_backends", nargs="+", default=["fused"], choices=list(BACKENDS))
    parser.add_argument(
        "--compile", default="false", choices=list(COMPILED), help="both: with and without torch.compile"
    )
    text = "only TSN and one other network in memory at a time (default: true on a GPU, or if networks are compiled)"
    parser.add_argument("--one_by_one", type=lambda x: x == "true", metavar="true|false", help=text)
    parser.add_argument("--num_segments", type=int, nargs="+", default=[8], metavar="T", help="a table for each")
    parser.add_argument("--size", type=int, default=224, metavar="PX")
    parser.add_argument("--clips", type=int, default=2, metavar="N", help="clips in a pass")
    parser.add_argument("--rounds", type=int, default=5, metavar="R", help="timed passes of each network")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="also write the table as a CSV file")
    args = parser.parse_args()
    check_model_names(parser, args.models)
    if args.one_by_one is None:
        args.one_by_one = args.device == "cuda" or args.compile != "false"
    return args


def main() -> None:
    args = parse_args()
    warnings.filterwarnings("ignore")
    if args.device == "cpu" and args.keep_freed_memory:
        keep_freed_memory()
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    models = args.models or list_models(toy=False)
    plain = "tsn_tiny" if models[0] in list_models(toy=True) else "tsn_r50"
    lines = []
    for precision in args.precision:
        for frames in args.num_segments:
            if lines:
                print()
            one = argparse.Namespace(**{**vars(args), "precision": precision, "num_segments": frames})
            lines += table(models, plain, one)
    if args.out:
        with args.out.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])


if __name__ == "__main__":
    main()
