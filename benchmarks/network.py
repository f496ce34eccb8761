"""Size, cost and clips per second of each network beside plain TSN: ``python -m benchmarks.network [MODEL ...]``.

The networks take turns in one process, training (``main.py``'s step) or testing, with the same clips, precision and
memory layout. The relative speed is a ratio of medians. Multiply-adds are of one clip of this size.
``python -m figs.draw_compared`` draws the table of ``--out`` beside published accuracies.
"""

import argparse
import csv
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from engine.flags import check_model_names
from engine.memory import keep_freed_memory
from models import build_model, list_models
from models.costs import costs
from ops.rsa import BACKENDS

from .measure import machine, medians
from .training import Trainer

CLASSES = 174  # Something-Something's
COLUMNS = ("model", "backend", "parameters", "multiply_adds", "training_share", "test_share")
COLUMNS += ("training_clips_per_second", "test_clips_per_second")
COLUMNS += ("num_segments", "size", "clips", "precision", "machine")


def passes(model: str, backend: str, args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Two functions: one training step and one forward pass of a network."""
    settings = {"precision": args.precision, "channels_last": args.channels_last, "cudnn_benchmark": True}
    trainer = Trainer(model, settings, args)
    network, ((clips, _),) = trainer.model, trainer.batches
    network.set_backend(backend)

    def test():
        network.eval()
        with torch.no_grad(), trainer.precision.autocast():
            network(clips)
        network.train()

    return {"training": trainer, "test": test}


def count(model: str, args: argparse.Namespace) -> tuple[int, float]:
    """The parameters of a network, and the multiply-adds of a clip of 224 px, whatever the size of the timed clips."""
    return costs(build_model(model, CLASSES, args.num_segments), args.num_segments, size=224)


def has_backends(model: str, args: argparse.Namespace) -> bool:
    """Whether an operator of the network has several paths."""
    with torch.device("meta"):
        return bool(build_model(model, CLASSES, args.num_segments).describe_backends(torch.device(args.device)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all but the toy networks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16", "fp16"])
    parser.add_argument("--channels_last", type=lambda x: x == "true", default=True, metavar="true|false")
    parser.add_argument("--keep_freed_memory", type=lambda x: x == "true", default=True, metavar="true|false")
    parser.add_argument("--rsa_backends", nargs="+", default=["fused"], choices=list(BACKENDS))
    parser.add_argument("--num_segments", type=int, default=8, metavar="T")
    parser.add_argument("--size", type=int, default=224, metavar="PX")
    parser.add_argument("--clips", type=int, default=2, metavar="N", help="clips in a pass")
    parser.add_argument("--rounds", type=int, default=5, metavar="R", help="timed passes of each network")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="also write the table as a CSV file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.device == "cpu" and args.keep_freed_memory:
        keep_freed_memory()
    check_model_names(parser, args.models)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    models = args.models or [name for name in list_models(toy=False) if name != "tsn_r50"]
    plain = "tsn_tiny" if models[0] in list_models(toy=True) else "tsn_r50"
    names = {plain: (plain, "auto")}
    for model in models:
        for backend in args.rsa_backends if has_backends(model, args) else ["auto"]:
            names[model if backend == "auto" else f"{model}, {backend}"] = model, backend
    counts = {model: count(model, args) for model, _ in names.values()}
    networks = {name: passes(*row, args) for name, row in names.items()}

    layout = "channels_last" if args.channels_last else "contiguous"
    print(f"{machine(args.device)}; {args.clips} clips of {args.num_segments} frames of {args.size} px, ", end="")
    print(f"{args.precision}, {layout}\n\n| network | parameters | G multiply-adds ", end="")
    print(f"| training, share of {plain} | test, share |\n|---|---|---|---|---|")
    seconds = [
        medians({name: networks[name][kind] for name in names}, args.rounds, args.device)
        for kind in ("training", "test")
    ]
    table = []
    for name, row in names.items():
        shares = [times[plain] / times[name] for times in seconds]
        rates = [args.clips / times[name] for times in seconds]
        parameters, multiply_adds = counts[row[0]]
        table.append([*row, parameters, multiply_adds, *(f"{value:.4g}" for value in (*shares, *rates))])
        shown = [f"{share:.2f}" for share in shares]
        if args.device == "cuda":
            shown = [f"{share} ({rate:.1f} clips/s)" for share, rate in zip(shown, rates, strict=True)]
        print(f"| {name} | {parameters:,} | {multiply_adds / 1e9:.2f} | {' | '.join(shown)} |", flush=True)
    if args.out:
        settings = [args.num_segments, args.size, args.clips, args.precision, machine(args.device)]
        with args.out.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *(line + settings for line in table)])


if __name__ == "__main__":
    main()
