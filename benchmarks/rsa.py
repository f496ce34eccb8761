"""Speed and memory of each of RSA's paths at the sizes of RSANet-R50's four stages: ``python -m benchmarks.rsa``.

All paths take turns in one run. Times are ratios to the plain path, which uses the released order of operations and
contiguous memory. The other paths get channels_last memory, as in their network. Peak memory is the memory that a pass
needs in addition to the operator and its input. On a CPU, the peak of the whole process is also given. ``fused``
computes a few frames at a time; ``--chunk_mb`` adds rows with other sizes of such a chunk.

The floor of a path is the longer of two times. The first is its multiply-adds at the rate of a dense 3x3 convolution
that is measured in the same run. The second is the time to move input, output and weights through memory once, at the
rate of a copy. Training counts three times the arithmetic and twice the memory.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F

from engine.precision import Precision
from ops import RSA, rsa_backend_reason, rsa_fused
from ops.rsa import BACKENDS

from .measure import machine, medians, memory_of, peak_memory

STAGES = {"res2": (64, 56), "res3": (128, 28), "res4": (256, 14), "res5": (512, 7)}  # channels, pixels of a side
PASSES = ("forward", "training")
KINDS = {"cuda": {"in use": True}, "cpu": {"in use": True, "process": False}}  # of peak memory -> memory_of's in_use


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


def variants(args: argparse.Namespace) -> dict[str, tuple[str, int | None]]:
    """The name of each row -> its path, and the chunk size of ``fused`` in bytes (``None``: the path's own)."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    usable = [path for path in BACKENDS if rsa_backend_reason(path, device, dtype).startswith(path)]
    found = {path: (path, None) for path in usable if path in ("reference", *args.paths)}
    if "fused" in found:
        found |= {f"fused, {mb:g} MB chunks": ("fused", int(mb * 2**20)) for mb in args.chunk_mb}
    return found


def with_chunks(run: Callable[[], None], size: int | None) -> Callable[[], None]:
    """A function that calls ``run`` while ``fused`` has chunks of ``size`` bytes."""

    def chunked():
        own = rsa_fused.CHUNK_BYTES
        rsa_fused.CHUNK_BYTES = own if size is None else dict.fromkeys(own, size)
        try:
            run()
        finally:
            rsa_fused.CHUNK_BYTES = own

    return chunked


def passes(
    stage: str, training: bool, args: argparse.Namespace
) -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
    """A function for each row that runs its pass, and the reasons of the paths that cannot compute it.

    Errors: those of the reference, because all other paths are compared with it.
    """
    runs, failed = {}, {}
    for name, (path, size) in variants(args).items():
        run = with_chunks(operator(path, stage, training, args), size)
        try:
            run()
            if args.device == "cuda":
                torch.cuda.synchronize()
            runs[name] = run
        except Exception as error:  # for example, a kernel that needs more shared memory than this GPU has
            if path == "reference":
                raise
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:120].replace("|", "/")
    return runs, failed


def peaks(
    runs: dict[str, Callable[[], None]], stage: str, name: str, args: argparse.Namespace
) -> dict[str, list[float]]:
    """The peaks of memory in MB of each row. On a CPU a new process measures each."""
    if not args.memory:
        return {row: [] for row in runs}
    if args.device == "cuda":
        return {row: [peak_memory(run, args.device)] for row, run in runs.items()}
    return {
        row: [memory_of("benchmarks.rsa", row, stage, name, in_use=kind) for kind in KINDS["cpu"].values()]
        for row in runs
    }


def measure(
    stage: str, name: str, floor: float, args: argparse.Namespace
) -> tuple[list[str], dict[str, float], dict[str, str]]:
    """The lines of a stage and a pass, how many times faster each row is, and the reasons of rows that failed."""
    runs, failed = passes(stage, name == "training", args)
    seconds = medians(runs, args.rounds, args.device)
    memory = peaks(runs, stage, name, args)
    lines, faster = [], {}
    for row in [*runs, *failed]:
        if row in failed:
            lines.append([stage, name, row, f"failed: {failed[row]}", ""])
            continue
        faster[row] = seconds["reference"] / seconds[row]
        shown = f"{faster[row]:.2f}" + (f" ({seconds[row] * 1e3:.2f} ms)" if args.device == "cuda" else "")
        shares = [f"{peak / plain:.2f}" for peak, plain in zip(memory[row], memory["reference"], strict=True)]
        if row == "reference":
            shares = [f"{peak:.0f} MB" for peak in memory[row]]
        lines.append([stage, name, row, shown, f"{floor / seconds[row]:.2f}", *shares])
    width = max(map(len, lines))
    return [f"| {' | '.join(line + [''] * (width - len(line)))} |" for line in lines], faster, failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rsa", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--clips", type=int, default=2, metavar="N")
    parser.add_argument("--num_segments", type=int, default=8, metavar="T")
    parser.add_argument("--rounds", type=int, default=7, metavar="R", help="timed passes of each path")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES), metavar="STAGE")
    text = "only these paths and the reference (default: all)"
    parser.add_argument("--paths", nargs="+", default=list(BACKENDS), choices=list(BACKENDS), metavar="PATH", help=text)
    text = "also time fused with chunks of these sizes"
    parser.add_argument("--chunk_mb", type=float, nargs="+", default=[], metavar="MB", help=text)
    parser.add_argument("--memory", type=lambda x: x == "true", default=True, metavar="true|false", help="its columns")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if any(mb <= 0 for mb in args.chunk_mb):
        parser.error("--chunk_mb must be above 0")
    Precision("fp32", torch.device(args.device)).apply()  # as main.py: products in float32 do not become TF32
    torch.backends.cudnn.benchmark = True
    if args.memory_of:
        row, stage, name = json.loads(args.memory_of)
        path, size = variants(args)[row]
        few = argparse.Namespace(**{**vars(args), "clips": 1, "num_segments": 1})
        operator(path, "res5", True, few)()  # the first call loads libraries and code
        print(peak_memory(with_chunks(operator(path, stage, name == "training", args), size), args.device))
        return

    arithmetic, bandwidth = rates(args)
    print(
        f"{machine(args.device)}; {args.clips} clips of {args.num_segments} frames, {args.dtype}; rates of the floor: "
    )
    print(f"{arithmetic / 1e9:.0f} G multiply-adds/s, {bandwidth / 1e9:.1f} GB/s\n")
    columns = ["stage", "pass", "path", "times faster", "share of floor"]
    columns += [f"peak memory, {kind}" for kind in KINDS[args.device] if args.memory]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    speed: dict[tuple[str, str], list[float]] = {}
    wrong = 0
    for stage in args.stages:
        macs, moved = work(stage, args)
        shown = []
        for name in PASSES:
            training = name == "training"
            floor = max((3 if training else 1) * macs / arithmetic, (2 if training else 1) * moved / bandwidth)
            lines, faster, failed = measure(stage, name, floor, args)
            shown += lines
            wrong += len(failed)
            for row, ratio in faster.items():
                speed.setdefault((name, row), []).append(ratio)
        print("\n".join(shown), flush=True)
    for (name, row), ratios in speed.items():
        if len(ratios) == len(args.stages):
            mean = math.prod(ratios) ** (1 / len(ratios))
            print(f"| geometric mean | {name} | {row} | {mean:.2f} |{' |' * (len(columns) - 4)}")
    if wrong:
        sys.exit("error: a path failed; its rows say why")


if __name__ == "__main__":
    main()
