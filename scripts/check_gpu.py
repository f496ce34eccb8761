"""Checks the results of this GPU: ``python -m scripts.check_gpu [OUT.md]`` writes a table of checks and benchmarks.

It trains small networks through main.py on the GPU with all training options, and compares them with the CPU. Then it
tests and exports them, compares logits and gradients, and runs RSA's tests and two benchmarks. The last line says which
checks agree. Exit status 0 means that all checks ran and agree.
"""

import argparse
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from data import toy
from engine.flags import parse_arguments

from .gpu_checks import CHECKS, Check, Differs, Missing, NotHere, Place
from .steps import OutOfTime, StepFailed, Steps

VIDEOS = 3  # per class of the toy set, both for training and for validation
MARGIN = 5  # seconds of the budget reserved for ending programs and writing the report
AGREES, RAN, DIFFERS, FAILED, NOT_RUN, NOT_HERE = "agrees", "ran", "DIFFERS", "failed", "not run", "does not apply"


@dataclass
class Row:
    """The result of a check."""

    name: str
    result: str
    figure: str
    seconds: float
    output: str = ""  # the last lines of a program that failed

    @property
    def line(self) -> str:
        return f"{self.name}: {self.result} ({self.figure})"


def carry_out(check: Check, place: Place) -> Row:
    """Run a check; returns its row. The row also reports errors."""
    start = place.steps.seconds
    _say(place, f"{check.name} ...")
    output = ""
    try:
        result, figure = (RAN if check.alone else AGREES), check.run(place)
    except Differs as error:
        result, figure, output = DIFFERS, str(error), getattr(error.__cause__, "output", "")
    except NotHere as error:
        result, figure = NOT_HERE, str(error)
    except Missing as error:
        result, figure = NOT_RUN, str(error)
    except OutOfTime:
        result, figure = NOT_RUN, "out of time"
    except StepFailed as error:
        result, figure, output = FAILED, str(error), error.output
    except Exception as error:  # for example, a program did not write its file
        result, figure, output = FAILED, f"{type(error).__name__}: {error}", traceback.format_exc()
    row = Row(check.name, result, figure, place.steps.seconds - start, output)
    _say(place, row.line)
    return row


def _say(place: Place, text: str) -> None:
    print(f"[{place.steps.seconds:4.0f} s] {text}", flush=True)


def carry_out_all(checks: list[Check], place: Place, at_once: int) -> list[Row]:
    """Run all checks; returns rows in their order. Checks that measure time run last, one by one."""
    rows = {}
    with ThreadPoolExecutor(at_once) as pool:
        try:
            found = {check.name: pool.submit(carry_out, check, place) for check in checks if not check.alone}
            rows |= {name: future.result() for name, future in found.items()}
            rows |= {check.name: carry_out(check, place) for check in checks if check.alone}
        except BaseException:
            place.steps.give_up()  # after Ctrl-C: ends running programs
            pool.shutdown(wait=False, cancel_futures=True)  # and does not start waiting checks
            raise
    return [rows[check.name] for check in checks]


def verdict(rows: list[Row]) -> str:
    """One line that says which checks agree and which do not."""
    of = {result: [row for row in rows if row.result == result] for result in {row.result for row in rows}}
    agree = len(of.get(AGREES, []))
    bad = of.get(DIFFERS, []) + of.get(FAILED, [])
    parts = [f"{agree} check{'s agree' if agree != 1 else ' agrees'}"]
    if bad:
        named = ", ".join(f"{row.name} ({row.result}: {row.figure})" for row in bad)
        parts.append(f"{len(bad)} do{'es' if len(bad) == 1 else ''} not: {named}")
    else:
        parts.append("none differs")
    for result, words in ((NOT_RUN, "not run"), (NOT_HERE, "not for this machine")):
        if found := of.get(result):
            reasons = dict.fromkeys(row.figure for row in found)
            named = "; ".join(
                f"{', '.join(row.name for row in found if row.figure == reason)} ({reason})" for reason in reasons
            )
            parts.append(f"{len(found)} {words}: {named}")
    return ", ".join(parts)


def all_agree(rows: list[Row]) -> bool:
    return all(row.result in (AGREES, RAN, NOT_HERE) for row in rows)


def report(rows: list[Row], tables: dict[str, str], facts: dict[str, str], end: str) -> str:
    """The text of the Markdown file."""
    lines = ["# Check of a GPU", "", end, ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "| check | result | figure | seconds |", "|---|---|---|---|"]
    for row in rows:
        figure = " ".join(row.figure.split()).replace("|", "\\|")
        lines.append(f"| {row.name} | {row.result} | {figure} | {row.seconds:.0f} |")
    for command, table in tables.items():
        lines += ["", f"## `{command}`", "", table]
    for row in rows:
        if row.output:
            lines += ["", f"## Last lines of: {row.name}", "", "```", row.output.strip(), "```"]
    return "\n".join(lines) + "\n"


def machine_and_versions(device: str) -> dict[str, str]:
    gpu = "none: a rehearsal on the CPU, which says nothing about a GPU"
    if device == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        gpu = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    cpu = platform.processor()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    triton = "none"
    with suppress(importlib.metadata.PackageNotFoundError):
        triton = importlib.metadata.version("triton")
    return {
        "GPU": gpu,
        "driver": driver() if device == "cuda" else "none",
        "CPU": f"{cpu}, {cores()} cores",
        "Python": platform.python_version(),
        "PyTorch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "Triton": triton,
    }


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown, nvidia-smi does not say"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def why_no_gpu() -> str | None:
    """One line that says why there is no GPU, or ``None`` if there is one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    told = "".join(f"; {str(warning.message).splitlines()[0]}" for warning in caught[:1])
    return f"no GPU: PyTorch {torch.__version__} {built} and sees none{told}. Nothing was checked or written."


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/check_gpu.sh", allow_abbrev=False)
    parser.description, _, parser.epilog = __doc__.partition("\n\n")
    parser.add_argument("out", nargs="?", default="logs/check_gpu.md", metavar="OUT.md", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only checks with one of these in their names")
    parser.add_argument("--minutes", type=float, default=8, metavar="M", help="for all checks together (default: 8)")
    parser.add_argument("--at_once", type=int, metavar="N", help="programs at the same time (default: by the cores)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a rehearsal without a GPU")
    args = parse_arguments(parser)
    if not args.minutes > 0 or (args.at_once is not None and args.at_once < 1):
        parser.error("--minutes and --at_once must be above 0")
    args.checks = [check for check in CHECKS if not args.only or any(text in check.name for text in args.only)]
    for text in args.only or []:
        if not any(text in check.name for check in CHECKS):
            parser.error(f"--only {text}: no check has it in its name; they are: {', '.join(c.name for c in CHECKS)}")
    return args


def main(args: argparse.Namespace) -> int:
    if args.device == "cuda" and (reason := why_no_gpu()):
        print(reason, file=sys.stderr)
        return 1
    out, facts, rows = Path(args.out), machine_and_versions(args.device), []
    try:  # reports an error now, not after minutes
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(report([], {}, facts, "The check has not ended."))
    except OSError as error:
        print(f"error: {out}: cannot be written ({error}); name another file", file=sys.stderr)
        return 1
    for name, value in facts.items():
        print(f"{name}: {value}")
    at_once = args.at_once or max(1, min(4, cores() // 2))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # SIGTERM then also ends the programs
    with tempfile.TemporaryDirectory(prefix="check_gpu-") as folder:
        steps = Steps(Path(folder), 60 * args.minutes - MARGIN, threads=max(1, cores() // at_once))
        gpu = args.device == "cuda"
        gpus = torch.cuda.device_count() if gpu else 2  # a rehearsal on the CPU can have any number of processes
        bf16 = not gpu or torch.cuda.get_device_capability() >= (8, 0)
        place = Place(args.device, gpus, bf16, steps, toy.draw_small(Path(folder), list(toy.MOTIONS), VIDEOS))
        rows = carry_out_all(args.checks, place, at_once)
    end = verdict(rows)
    out.write_text(report(rows, place.tables, facts, end))
    print(f"report: {out}\n{end}")
    return 0 if all_agree(rows) else 1


if __name__ == "__main__":
    try:
        status = main(parse_args())
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    sys.exit(status)
