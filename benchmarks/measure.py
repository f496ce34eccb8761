"""What the benchmarks share: times taken in turn, peak memory, and the line that names the machine."""

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


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, PyTorch {torch.__version__}, Python {platform.python_version()}"


def medians(runs: dict[str, Callable[[], None]], rounds: int, device: str, warm_up: int = 2) -> dict[str, float]:
    """The median seconds of each run, all taken in turn, so that a slow moment of the machine falls on all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + warm_up):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if i >= warm_up:  # compiling, first allocations
                times[name].append(time.perf_counter() - start)
        print(f"  round {i + 1} of {rounds + warm_up}", file=sys.stderr, flush=True)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(run: Callable[[], None], device: str) -> float:
    """MB that two calls take at most beyond what there is. On a CPU it is the process's, so one call a process."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(), run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed would hide as much of what is taken now
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of imports and building, is forgotten
    before = _resident("VmRSS")
    run(), run()
    return _resident("VmHWM") - before


def memory_of(module: str, *key: str, in_use: bool = False) -> float:
    """What ``module``, run with this program's arguments and ``--memory_of KEY``, prints: a process for each peak.

    ``in_use``: what is in use at once. A CPU's process otherwise takes more, since glibc keeps part of what is freed.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *sys.argv[1:], "--memory_of", json.dumps(key)]
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536"} if in_use else {}  # what is larger is given back when freed
    environment = os.environ | given_back
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)


def _resident(field: str) -> float:
    """MB of this process that are (``VmRSS``) or were at most (``VmHWM``) in memory. Linux."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1e3
