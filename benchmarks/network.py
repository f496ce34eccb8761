"""Clips per second of each network relative to plain TSN: ``python -m benchmarks.network [MODEL ...]``.

The networks take turns in one process, training (``main.py``'s step) or testing, with the same clips, precision and
memory layout. The relative speed is a ratio of medians.
"""

import argparse
import warnings
from collections.abc import Callable

import torch

from engine.flags import check_model_names
from engine.memory import keep_freed_memory
from models import build_model, list_models
from ops.rsa import BACKENDS

from .measure import machine, medians
from .training import Trainer


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


def has_backends(model: str, args: argparse.Namespace) -> bool:
    """Whether an operator of the network has several paths."""
    with torch.device("meta"):
        return bool(build_model(model, 174, args.num_segments).describe_backends(torch.device(args.device)))


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
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.device == "cpu" and args.keep_freed_memory:
        keep_freed_memory()
    check_model_names(parser, args.models)
    models = args.models or [name for name in list_models(toy=False) if name != "tsn_r50"]
    plain = "tsn_tiny" if models[0] in list_models(toy=True) else "tsn_r50"
    rows = {plain: passes(plain, "auto", args)}
    for model in models:
        for backend in args.rsa_backends if has_backends(model, args) else ["auto"]:
            name = f"{model}, {backend}" if backend != "auto" else model
            rows[name] = passes(model, backend, args)

    layout = "channels_last" if args.channels_last else "contiguous"
    print(f"{machine(args.device)}; {args.clips} clips of {args.num_segments} frames of {args.size} px, ", end="")
    print(f"{args.precision}, {layout}\n\n| network | training, share of {plain} | test, share |\n|---|---|---|")
    seconds = {
        kind: medians({row: rows[row][kind] for row in rows}, args.rounds, args.device) for kind in ("training", "test")
    }
    for row in rows:
        shares = []
        for times in seconds.values():
            rate = f" ({args.clips / times[row]:.1f} clips/s)" if args.device == "cuda" else ""
            shares.append(f"{times[plain] / times[row]:.2f}{rate}")
        print(f"| {row} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
