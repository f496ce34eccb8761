"""Speed and memory of each of RSA's paths at the sizes of RSANet-R50's four stages: ``python -m benchmarks.rsa``.

All paths take turns in one run. Times are ratios to the plain path, which uses the released order of operations and
contiguous memory. The other paths get channels_last memory, as in their network. Peak memory is the memory that a pass
needs in addition to the operator and its input. On a CPU, the peak of the whole process is also given.

The floor of a path is the longer of two times. The first is its multiply-adds at the rate of a dense 3x3 convolution
that is measured in the same run. The second is the time to move input, output and weights through memory once, at the
rate of a copy. Training counts three times the arithmetic and twice the memory.
"""

import argparse
import json
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ops import RSA, rsa_backend_reason
from ops.rsa import BACKENDS

from .measure import machine, medians, memory_of, peak_memory

STAGES = {"res2": (64, 56), "res3": (128, 28), "res4": (256, 14), "res5": (512, 7)}  # channels, pixels of a side
PASSES = ("forward", "training")


def operator(path: str, stage: str, training: bool, args: argparse.Namespace) -> Callable[[], None]:
    """A function that runs one pass of the operator. Every call uses the same clips."""
    channels, size = STAGES[stage]
    torch.manual_seed(0)
    rsa = RSA(channels, channels, backend=path).to(args.device, getattr(torch, args.dtype))
    x = torch.randn(args.clips, channels, args.num_segments, size, size).to(args.device, getattr(torch, args.dtype))
    if path != "reference":
        x = x.to(memory_format=torch.channels_last_3d)
    x.requires_grad_(training)
    gradient = torch.ones_like(x)

    def run():
        with torch.set_grad_enabled(training):
            y = rsa(x)
        if training:
            y.backward(gradient)
            rsa.zero_grad()
            x.grad = None

    return run


def work(stage: str, args: argparse.Namespace) -> tuple[float, float]:
    """Multiply-adds and bytes of a forward pass: the projection, three convolutions and three small products."""
    channels, size = STAGES[stage]
    positions, heads, taps = args.clips * args.num_segments * size * size, 8, 5 * 7 * 7
    d = channels // heads
    macs = positions * (channels * (channels + 2 * d) + 3 * taps * d * d + 3 * heads * d * d)
    weights = channels * (channels + 2 * d) + (d * d + 2 * d) * taps
    return macs, (2 * positions * channels + weights) * getattr(torch, args.dtype).itemsize


def rates(args: argparse.Namespace) -> tuple[float, float]:
    """Multiply-adds per second of a dense 3x3 convolution, and bytes per second (read and written) of a copy."""
    dtype = getattr(torch, args.dtype)
    frames = args.clips * args.num_segments
    x = torch.randn(frames, 256, 28, 28).to(args.device, dtype, memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3).to(args.device, dtype, memory_format=torch.channels_last)
    a, b = (torch.ones(2**25, device=args.device) for _ in range(2))
    with torch.no_grad():
        runs = {"convolution": lambda: F.conv2d(x, weight, padding=1), "copy": lambda: b.copy_(a)}
        seconds = medians(runs, args.rounds, args.device)
    return frames * 28 * 28 * 256 * 256 * 9 / seconds["convolution"], 2 * 2**27 / seconds["copy"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rsa", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--clips", type=int, default=2, metavar="N")
    parser.add_argument("--num_segments", type=int, default=8, metavar="T")
    parser.add_argument("--rounds", type=int, default=7, metavar="R", help="timed passes of each path")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES), metavar="STAGE")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        path, stage, name = json.loads(args.memory_of)
        few = argparse.Namespace(**{**vars(args), "clips": 1, "num_segments": 1})
        operator(path, "res5", True, few)()  # the first call loads libraries and code
        print(peak_memory(operator(path, stage, name == "training", args), args.device))
        return

    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    paths = [p for p in BACKENDS if rsa_backend_reason(p, device, dtype).startswith(p)]
    arithmetic, bandwidth = rates(args)
    print(
        f"{machine(args.device)}; {args.clips} clips of {args.num_segments} frames, {args.dtype}; rates of the floor: "
    )
    print(f"{arithmetic / 1e9:.0f} G multiply-adds/s, {bandwidth / 1e9:.1f} GB/s\n")
    kinds = {"in use": True} if args.device == "cuda" else {"in use": True, "process": False}
    columns = ["stage", "pass", "path", "times faster", "share of floor", *(f"peak memory, {kind}" for kind in kinds)]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    speed: dict[tuple[str, str], list[float]] = {}
    for stage in args.stages:
        macs, moved = work(stage, args)
        for name in PASSES:
            training = name == "training"
            runs = {path: operator(path, stage, training, args) for path in paths}
            seconds = medians(runs, args.rounds, args.device)
            floor = max((3 if training else 1) * macs / arithmetic, (2 if training else 1) * moved / bandwidth)
            peaks = {
                p: [memory_of("benchmarks.rsa", p, stage, name, in_use=kind) for kind in kinds.values()] for p in paths
            }
            for path in paths:
                speed.setdefault((name, path), []).append(seconds["reference"] / seconds[path])
                faster = f"{speed[name, path][-1]:.2f}"
                if args.device == "cuda":
                    faster += f" ({seconds[path] * 1e3:.2f} ms)"
                shares = [f"{peak / plain:.2f}" for peak, plain in zip(peaks[path], peaks["reference"], strict=True)]
                if path == "reference":
                    shares = [f"{peak:.0f} MB" for peak in peaks[path]]
                row = [stage, name, path, faster, f"{floor / seconds[path]:.2f}", *shares]
                print(f"| {' | '.join(row)} |", flush=True)
    for (name, path), ratios in speed.items():
        mean = math.prod(ratios) ** (1 / len(ratios))
        print(f"| geometric mean | {name} | {path} | {mean:.2f} |{' |' * (len(columns) - 4)}")


if __name__ == "__main__":
    main()
