"""Time and memory cost of each training option: ``python -m benchmarks.training [MODEL ...]``.

Each option is compared with the plain path (fp32, contiguous memory, not compiled), in a training step and in a test
pass of the same clips. The settings take turns in one process, so a slow moment of the machine affects all of them.
Ratios are ratios of medians. Peak memory is the memory that two steps need in addition to the network. On a CPU it is
measured in one process per setting; on a GPU PyTorch counts it.
"""

import argparse
import json
import warnings

import torch

from engine import config
from engine.batch import plan_batch
from engine.flags import check_model_names
from engine.memory import keep_freed_memory
from engine.network import build_for_training
from engine.optim import build_optimizer
from engine.precision import Precision
from engine.state import average_weights
from engine.step import train_step
from models import list_models

from .measure import add_clip_flags, machine, medians, memory_of, peak_memory

PLAIN = {"precision": "fp32", "channels_last": False, "compile": False, "pretrained": None, "cudnn_benchmark": False}
CPU = {
    "plain": {},
    "channels_last": {"channels_last": True},
    "precision bf16": {"precision": "bf16"},
    "channels_last, bf16": {"channels_last": True, "precision": "bf16"},
    "compile": {"compile": True},
    "channels_last, compile": {"channels_last": True, "compile": True},
    "activation_checkpointing": {"activation_checkpointing": True},
    "batch_size 1 (accumulated)": {"batch_size": 1},
    "ema_decay 0.999": {"ema_decay": 0.999},
}
GPU = {
    **CPU,
    "cudnn_benchmark": {"cudnn_benchmark": True},
    "precision tf32": {"precision": "tf32"},
    "precision fp16": {"precision": "fp16"},
    "all: channels_last, bf16, cudnn_benchmark": {"channels_last": True, "precision": "bf16", "cudnn_benchmark": True},
}


class Trainer:
    """A network and one fixed batch. Each call runs one training step as in main.py."""

    def __init__(self, model: str, settings: dict, args: argparse.Namespace):
        self.device = torch.device(args.device)
        base = PLAIN | {"num_segments": args.num_segments, "global_batch_size": args.clips}
        self.recipe = config.load_recipe(model, "something_v1", **base | settings)
        self.plan = plan_batch(args.clips, self.recipe.batch_size, 1)
        self.precision = Precision(self.recipe.precision, self.device)
        self.model = build_for_training(model, 174, self.recipe, self.device, with_weights=False)
        self.optimizer = build_optimizer(self.model, self.recipe)
        self.ema = average_weights(self.model, self.recipe.ema_decay)
        if self.recipe.compile:
            self.model.compile()
        clips = torch.randn(args.clips, args.num_segments, 3, args.size, args.size, device=self.device)
        labels = torch.arange(args.clips, device=self.device)
        parts = [self.plan.share(list(range(args.clips)), 0, i) for i in range(self.plan.accumulation)]
        self.batches = [(clips[part], labels[part]) for part in parts]

    def __call__(self) -> None:
        """Run one step."""
        # These switches belong to the process, and one process holds the trainers of all settings.
        torch.backends.cudnn.benchmark = self.recipe.cudnn_benchmark
        self.precision.apply()
        train_step(self.model, self.batches, self.optimizer, self.plan, self.precision, clip_gradient=100.0)
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    @torch.no_grad()
    def test(self) -> torch.Tensor:
        """The logits of the clips in a test."""
        self.precision.apply()
        self.model.eval()
        with self.precision.autocast():
            logits = torch.cat([self.model(clips) for clips, _ in self.batches])
        self.model.train()
        return logits.float()


def times_of(model: str, settings: dict[str, dict], args: argparse.Namespace) -> tuple[dict[str, float], ...]:
    """The median times of each setting's training steps and test passes."""
    trainers = {name: Trainer(model, values, args) for name, values in settings.items()}
    tests = {name: trainer.test for name, trainer in trainers.items()}
    return tuple(medians(runs, args.steps, args.device) for runs in (trainers, tests))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all but the toy networks")
    add_clip_flags(parser)
    parser.add_argument("--steps", type=int, default=5, metavar="S", help="timed steps of each setting")
    parser.add_argument("--only", nargs="+", metavar="SETTING", help="the plain path and only these settings")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    check_model_names(parser, args.models)
    settings = GPU if args.device == "cuda" else CPU
    if args.only:
        wrong = [name for name in args.only if name not in settings]
        if wrong:
            parser.error(f"unknown setting {wrong[0]!r}; known: {', '.join(settings)}")
        settings = {name: settings[name] for name in ("plain", *args.only)}
    if args.memory_of:
        model, name = json.loads(args.memory_of)
        print(peak_memory(Trainer(model, GPU[name], args), args.device))
        return

    if args.device == "cpu":
        keep_freed_memory()  # as main.py does
    print(f"{machine(args.device)}; a step of {args.clips} clips of {args.num_segments} frames of {args.size} px\n")
    print("| model | setting | time of a step / plain | of a test pass / plain | peak memory / plain |", end="")
    print("\n|---|---|---|---|---|", flush=True)
    for model in args.models or list_models(toy=False):
        training, test = times_of(model, settings, args)
        memory = {name: memory_of("benchmarks.training", model, name) for name in settings}
        for name in settings:
            cells = [f"{values[name] / values['plain']:.2f}" for values in (training, test, memory)]
            if name == "plain":
                cells[2] += f" ({memory[name]:.0f} MB)"
                if args.device == "cuda":
                    cells[:2] = [f"1.00 ({times[name] * 1e3:.0f} ms)" for times in (training, test)]
            print(f"| {model} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
