"""Functions shared by the benchmarks: interleaved timing, peak memory, and the line that names the machine."""

import argparse
import ctypes
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch


def add_clip_flags(parser: argparse.ArgumentParser, frames: int = 8) -> None:
    """Add the flags of the device and of the clips of a pass. ``frames`` is the default of ``--num_segments``."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--num_segments", type=int, default=frames, metavar="T")
    parser.add_argument("--size", type=int, default=224, metavar="PX")
    parser.add_argument("--clips", type=int, default=2, metavar="N", help="clips in a pass or step")


def machine_and_clips(args: argparse.Namespace) -> str:
    """The start of the line above a table: the machine, and the clips of ``add_clip_flags``."""
    return f"{machine(args.device)}; {args.clips} clips of {args.num_segments} frames of {args.size} px"


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, PyTorch {torch.__version__}, Python {platform.python_version()}"


def medians(
    runs: dict[str, Callable[[], None]],
    rounds: int,
    device: str,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The median seconds of each run, as ``clock`` counts them.

    The runs take turns. A slow moment of the machine therefore affects all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + warm_up):
        for name, run in runs.items():
            start = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if i >= warm_up:  # earlier rounds compile and allocate memory
                times[name].append(clock() - start)
        print(f"  round {i + 1} of {rounds + warm_up}", file=sys.stderr, flush=True)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(run: Callable[[], None], device: str) -> float:
    """The peak of two calls in MB, beyond the memory in use before them.

    On a CPU it is the peak of the whole process, so each process can measure only one peak.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(), run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise reused memory would not show in the peak
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which includes the imports so far
    before = _resident("VmRSS")
    run(), run()
    return _resident("VmHWM") - before


def memory_of(module: str, *key: str, in_use: bool = False) -> float:
    """The peak memory in MB that ``module`` prints. It runs in a new process, with ``--memory_of KEY``.

    The process also gets this program's arguments. With ``in_use``, the peak on a CPU counts only memory that is in use
    at the same time. Otherwise it includes freed memory that glibc keeps.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *sys.argv[1:], "--memory_of", json.dumps(key)]
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536"} if in_use else {}  # larger blocks go back to the system when freed
    environment = os.environ | given_back
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)


def _resident(field: str) -> float:
    """The resident memory of this process in MB, now (``VmRSS``) or at its peak (``VmHWM``). Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1e3
