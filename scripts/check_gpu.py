"""Checks the results of this GPU and measures its speed: ``python -m scripts.check_gpu [OUT.md]``.

It trains small networks through main.py on the GPU with all training options, and compares them with the CPU. Then it
tests and exports them, compares logits and gradients, and runs RSA's tests. After these checks it measures RSA's
operator, all networks with 8 and 16 frames in two precisions, the loader, the switches of training, and compiled
networks, the most important first. OUT.md has all tables, what ``auto`` should be on this GPU, and which aims are
reached. Each row is in the file as soon as it is measured. OUT.json holds the same, and --resume goes on from it. The
last line says which checks agree. Exit status 0 means that everything ran and agrees.
"""

import argparse
import math
import signal
import sys
import tempfile
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from data import toy
from engine.flags import parse_arguments
from engine.loading import processes_and_cores

from . import gpu_checks
from .gpu_checks import Check, Differs, Missing, NotHere, Place
from .gpu_measurements import MEASUREMENTS
from .gpu_record import (
    AGREES,
    DIFFERS,
    FAILED,
    NOT_HERE,
    NOT_RUN,
    RAN,
    Record,
    RecordError,
    Row,
    all_agree,
    machine_and_versions,
    verdict,
)
from .steps import OutOfTime, StepFailed, Steps

VIDEOS = 3  # per class of the toy set, both for training and for validation
MARGIN = 5  # seconds of the budget reserved for ending programs and writing the report
MINUTES = 90
OUT_OF_TIME = "out of time"
CHECKS = [*gpu_checks.CHECKS, *MEASUREMENTS]


def carry_out(check: Check, place: Place) -> Row:
    """Run a check; returns its row, which also reports errors. The row goes into the record."""
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
    except OutOfTime as error:
        result, figure = NOT_RUN, str(error) or OUT_OF_TIME
    except StepFailed as error:
        result, figure, output = FAILED, str(error), error.output
    except Exception as error:  # for example, a program did not write its file
        result, figure, output = FAILED, f"{type(error).__name__}: {error}", traceback.format_exc()
    row = Row(check.name, result, figure, place.steps.seconds - start, output)
    if place.record is not None:
        place.record.add(row)
    _say(place, row.line)
    return row


def _say(place: Place, text: str) -> None:
    print(f"[{place.steps.seconds:4.0f} s] {text}", flush=True)


def carry_out_all(checks: list[Check], place: Place, at_once: int) -> None:
    """Run all checks. Checks that measure time run last, one by one."""
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for future in [pool.submit(carry_out, check, place) for check in checks if not check.alone]:
                future.result()
            for check in checks:
                if check.alone:
                    carry_out(check, place)
        except BaseException:
            place.steps.give_up()  # after Ctrl-C: ends running programs
            pool.shutdown(wait=False, cancel_futures=True)  # and does not start waiting checks
            raise


def why_no_gpu() -> str | None:
    """One line that says why there is no GPU, or ``None`` if there is one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    told = "".join(f"; {str(warning.message).splitlines()[0]}" for warning in caught[:1])
    return f"no GPU: PyTorch {torch.__version__} {built} and sees none{told}. Nothing was checked or written."


def clips_of_a_gpu() -> int:
    """The clips of a training step in the benchmarks: 16 if the GPU has 128 GB, fewer if it has less memory."""
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return max(2, min(16, 2 ** int(math.log2(memory / 8))))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/check_gpu.sh", allow_abbrev=False)
    parser.description, _, parser.epilog = __doc__.partition("\n\n")
    parser.add_argument("out", nargs="?", default="logs/check_gpu.md", metavar="OUT.md", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only checks with one of these in their names")
    text = "for all checks together (default: %(default)s); what is not reached is listed as not run"
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="M", help=text)
    text = "keep the results of an earlier call that are in OUT.json, and run what is missing or did not agree"
    parser.add_argument("--resume", action="store_true", help=text)
    text = "with --resume: also run the checks again that have one of these in their names"
    parser.add_argument("--again", nargs="+", default=[], metavar="TEXT", help=text)
    parser.add_argument("--at_once", type=int, metavar="N", help="programs at the same time (default: by the cores)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a rehearsal without a GPU")
    args = parse_arguments(parser)
    if not args.minutes > 0 or (args.at_once is not None and args.at_once < 1):
        parser.error("--minutes and --at_once must be above 0")
    args.checks = [check for check in CHECKS if not args.only or any(text in check.name for text in args.only)]
    for flag, text in [*(("--only", text) for text in args.only or []), *(("--again", text) for text in args.again)]:
        if not any(text in check.name for check in CHECKS):
            parser.error(f"{flag} {text}: no check has it in its name; they are: {', '.join(c.name for c in CHECKS)}")
    if args.again and not args.resume:
        parser.error("--again needs --resume; without it all checks run")
    return args


def main(args: argparse.Namespace) -> int:
    if args.device == "cuda" and (reason := why_no_gpu()):
        print(reason, file=sys.stderr)
        return 1
    gpu = args.device == "cuda"
    bf16 = not gpu or torch.cuda.get_device_capability() >= (8, 0)
    facts = machine_and_versions(args.device) | {"half precision": "bf16" if bf16 else "fp16"}
    names = [check.name for check in CHECKS]
    record = Record(Path(args.out), facts, names, [check.name for check in args.checks])
    try:  # reports an error now, not after minutes
        record.out.parent.mkdir(parents=True, exist_ok=True)
        if args.resume:
            record.resume(args.again, [check.name for check in CHECKS if check.alone])
        record.save()
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {args.out}: cannot be written ({error}); name another file", file=sys.stderr)
        return 1
    for name, value in facts.items():
        print(f"{name}: {value}")
    checks = [check for check in args.checks if check.name not in record.rows]
    kept = f", {len(args.checks) - len(checks)} are kept" if len(checks) < len(args.checks) else ""
    print(f"{len(checks)} checks and measurements{kept}; this takes at most {args.minutes:g} minutes (--minutes)")
    _, cores = processes_and_cores()
    at_once = args.at_once or max(1, min(4, cores // 2))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # SIGTERM then also ends the programs
    with tempfile.TemporaryDirectory(prefix="check_gpu-") as folder:
        steps = Steps(Path(folder), 60 * args.minutes - MARGIN, threads=max(1, cores // at_once))
        gpus = torch.cuda.device_count() if gpu else 2  # a rehearsal on the CPU can have any number of processes
        dataset = toy.draw_small(Path(folder), list(toy.MOTIONS), VIDEOS)
        place = Place(args.device, gpus, bf16, steps, dataset, clips_of_a_gpu() if gpu else 2, record)
        carry_out_all(checks, place, at_once)
    rows = record.ordered()
    end = verdict(rows)
    record.save(end)
    if any(row.result == NOT_RUN and row.figure.startswith(OUT_OF_TIME) for row in rows):
        print("The same command with --resume goes on with what was not run.")
    print(f"report: {record.out}\n{end}")
    return 0 if all_agree(rows) else 1


if __name__ == "__main__":
    try:
        status = main(parse_args())
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    sys.exit(status)
