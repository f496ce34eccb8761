"""Time of each network compiled by ``torch.compile``, beside eager: ``python -m benchmarks.compile [MODEL ...]``.

The two forms of a network take turns in one process: training (``main.py``'s step) and testing, with the same clips, in
channels_last memory. Ratios are ratios of medians. On a single CPU thread, all times are CPU seconds, so other programs
on the same core do not count. The seconds of compilation are those of the first call in addition to a later one, with
empty caches and one compiling process. The differences are those of the test's logits and of the first step's loss and
gradient norm, as shares of eager's. The compiled form draws the same random numbers as the eager form.
"""

import argparse
import os
import time
import warnings

import torch
import torch._dynamo
import torch._inductor.config
from torch._inductor.utils import fresh_cache

from engine.flags import check_model_names
from engine.memory import keep_freed_memory
from engine.step import train_step
from models import list_models

from .measure import add_clip_flags, machine_and_clips, medians
from .training import Trainer

COLUMNS = ("network", "training, compiled / eager", "test, compiled / eager")
COLUMNS += ("seconds to compile, training", "test", "eager training steps in these seconds")
COLUMNS += ("difference of logits", "loss", "gradient norm", "graphs")


def first_step(form: Trainer) -> tuple[torch.Tensor, ...]:
    """The loss of a network's first training step, and the norm of its gradient."""
    torch.manual_seed(0)
    step = train_step(form.model, form.batches, form.optimizer, form.plan, form.precision, clip_gradient=100.0)
    return torch.tensor(step.loss), torch.tensor(step.norm)


def cpu_seconds() -> float:
    """The CPU seconds of this process and of the compilers that it has run."""
    return sum(os.times()[:4])


def measure(model: str, args: argparse.Namespace) -> dict:
    """The ratios, seconds and differences of one network."""
    alone = args.device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    with_compilers = cpu_seconds if alone else time.perf_counter
    settings = {"channels_last": True, "cudnn_benchmark": True, "precision": args.precision}
    eager, compiled = (Trainer(model, settings | {"compile": switch}, args) for switch in (False, True))
    both = {"eager": eager, "compiled": compiled}
    seconds, differences = {}, []
    for name, run in (("test", lambda form: [form.test()]), ("training", first_step)):
        start = with_compilers()
        found = run(compiled)
        seconds[name] = with_compilers() - start
        expected = run(eager)
        differences += [float((x - y).norm() / y.norm()) for x, y in zip(found, expected, strict=True)]
    training = medians(both, args.rounds, args.device, clock=clock)
    test = medians({name: form.test for name, form in both.items()}, args.rounds, args.device, clock=clock)
    return {
        "training": training["compiled"] / training["eager"],
        "test": test["compiled"] / test["eager"],
        "training_seconds": seconds["training"] - training["compiled"],
        "test_seconds": seconds["test"] - test["compiled"],
        "step_seconds": training["eager"],
        "differences": differences,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all but the toy networks")
    add_clip_flags(parser)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16", "fp16"])
    parser.add_argument("--rounds", type=int, default=5, metavar="R", help="timed passes of each form")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    check_model_names(parser, args.models)
    if args.device == "cpu":
        keep_freed_memory()
    torch._inductor.config.fallback_random = True  # the compiled form then draws eager's random numbers
    torch._inductor.config.compile_threads = 1

    print(f"{machine_and_clips(args)}, {args.precision}, channels_last\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    for model in args.models or list_models(toy=False):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        with fresh_cache():
            found = measure(model, args)
        steps = (found["training_seconds"] + found["test_seconds"]) / found["step_seconds"]
        cells = [f"{found['training']:.2f}", f"{found['test']:.2f}"]
        cells += [f"{value:.0f}" for value in (found["training_seconds"], found["test_seconds"], steps)]
        cells += [f"{value:.0e}" for value in found["differences"]]
        print(f"| {model} | {' | '.join(cells)} | {found['graphs']} |", flush=True)


if __name__ == "__main__":
    main()
