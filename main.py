"""Train: ``python main.py DATASET MODEL --run NAME --num_segments T [any recipe key]``. See README.md."""

import argparse
import dataclasses
import platform
import random
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
import yaml
from tensorboardX import SummaryWriter
from torch.nn.parallel import DistributedDataParallel

from data import DataError, DatasetConfig, load_dataset_config
from data.labels import describe_flip
from engine import checkpoint, config, distributed, log
from engine.batch import BatchPlan, plan_batch
from engine.config import ConfigError, Recipe
from engine.evaluate import evaluate
from engine.interrupt import Stopped, StopRequest
from engine.loading import describe_workers, training_data
from engine.network import build_for_training
from engine.optim import build_optimizer, set_learning_rate
from engine.precision import Precision
from engine.schedule import learning_rate
from engine.state import TrainingState, average_weights
from engine.train import train_one_epoch
from models import WeightsError, list_models


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("dataset", help="a name in data/ or a path to a dataset's .yaml")
    parser.add_argument("model", help=f"one of {', '.join(list_models())}")
    parser.add_argument("--run", required=True, help="name of the run: net_runs/<run>/ and logs/<run>.log")
    parser.add_argument("--variant", help="a named variant of the recipe")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")
    parser.add_argument("--resume", metavar="auto|PATH", help="go on from the run's newest checkpoint, or from a file")
    for name in ("root", "train_list", "val_list", "image_tmpl"):
        parser.add_argument(f"--{name}", help="instead of the dataset's own")
    config.add_recipe_flags(parser)
    return config.parse_arguments(parser)


def main(args: argparse.Namespace) -> None:
    device = distributed.init(args.device)
    folder = Path("net_runs") / args.run
    with distributed.main_process_first():  # it alone draws the toy set and makes the run folder
        overrides = {name: getattr(args, name) for name in ("root", "train_list", "val_list", "image_tmpl")}
        dataset = load_dataset_config(args.dataset, **overrides)
        recipe, plan, batch_line = make_recipe(args, dataset)
        precision = Precision(recipe.precision, device)
        resume = find_checkpoint(args.resume, folder)
        content = checkpoint.read_for_resume(resume, args.model) if resume else None
        train_loader, val_set = training_data(dataset, recipe, plan, device)
        if distributed.is_main():
            checkpoint.open_folder(folder)
    log.setup(Path("logs") / f"{args.run}.log", enabled=distributed.is_main())
    settings = describe(args, dataset, recipe, device)
    if distributed.is_main():
        (folder / "config.yaml").write_text(settings, encoding="utf-8")
    log.info(settings)
    log.info(describe_flip(recipe.flip, dataset.categories, dataset.mirror_pairs))
    log.info(val_set.modality.describe(dataset.image_tmpl))
    log.info(batch_line)
    describe_workers(recipe.workers)

    random.seed(recipe.seed)
    np.random.seed(recipe.seed)  # noqa: NPY002  nothing here draws from it; what a user adds may
    with distributed.main_process_first():  # it alone fetches ImageNet weights
        model = build_for_training(args.model, dataset.num_classes, recipe, device, with_weights=not resume)
        averaged = average_weights(model, recipe.ema_decay)
        state = TrainingState(model, build_optimizer(model, recipe), precision, averaged)
    if content:
        state.restore(content, str(resume))
        log.info(f"resumed from {resume}: {state}")
        for change in checkpoint.changes(content, config.to_plain(recipe)):
            log.info(f"changed since that checkpoint: {change}")
    if recipe.compile:
        model.compile()
    net = model
    if distributed.world_size() > 1:
        net = DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
    board = SummaryWriter(str(folder / "tensorboard")) if distributed.is_main() else None
    saved = time.monotonic()

    def save(is_best: bool = False) -> None:
        nonlocal saved
        if distributed.is_main():
            checkpoint.save(folder, state.to_checkpoint(yaml.safe_load(settings)), is_best, recipe.keep)
        saved = time.monotonic()

    def after_step(stop_now: bool) -> None:
        if stop_now or checkpoint.is_due(recipe.save_every, state.step, time.monotonic() - saved):
            save()
        if stop_now:
            log.info(f"stopped, {state}; go on with --resume auto")
            raise Stopped

    with StopRequest() as stop:
        while state.epoch < recipe.epochs:
            lr = learning_rate(recipe, state.epoch)
            set_learning_rate(state.optimizer, lr, recipe.lr_multipliers)
            trained = train_one_epoch(net, train_loader, state, recipe, lr, stop, after_step)

            done, is_best, tested = state.epoch + 1, False, {}
            if done % recipe.eval_every == 0 or done > recipe.epochs - max(1, recipe.eval_last):
                distributed.share_buffers(state.tested)
                sizes = {"batch_size": plan.per_process, "workers": recipe.workers, "print_every": recipe.print_every}
                try:
                    _, tested, _ = evaluate(
                        state.tested, val_set, precision, **sizes, label_smoothing=recipe.label_smoothing, stop=stop
                    )
                except Stopped:
                    after_step(True)
                # The first validation makes a best checkpoint even at 0 %: what tests a run looks for that file.
                is_best = tested["top1"] > state.best or not (folder / checkpoint.BEST).exists()
                state.best = max(tested["top1"], state.best)
            state.next_epoch()
            if distributed.is_main():
                write_board(board, done, lr, trained, tested)
            save(is_best)
    log.info(f"finished: {recipe.epochs} epochs, best Prec@1 {state.best:.3f}, checkpoints in {folder}")


def make_recipe(args: argparse.Namespace, dataset: DatasetConfig) -> tuple[Recipe, BatchPlan, str]:
    """The recipe with the flags, how a step's clips are shared, and that in one line for the log."""
    given = config.given_recipe_flags(args)
    published = config.load_recipe(args.model, dataset.name, args.variant)
    recipe = config.load_recipe(args.model, dataset.name, args.variant, **given)
    plan = plan_batch(recipe.global_batch_size, recipe.batch_size, distributed.world_size())
    recipe.global_batch_size, scaling = plan.global_batch, ""
    if plan.global_batch != published.global_batch_size and recipe.scale_lr and "lr" not in given:
        recipe.lr = published.lr * plan.global_batch / published.global_batch_size
        ratio = f"{plan.global_batch} / {published.global_batch_size}"
        scaling = f" ({published.lr:g} x {ratio}; --scale_lr false keeps {published.lr:g})"
    return recipe, plan, f"batch: {plan}, lr {recipe.lr:g}{scaling}"


def describe(args: argparse.Namespace, dataset: DatasetConfig, recipe: Recipe, device: torch.device) -> str:
    """Everything the run depends on, as YAML."""
    settings = {
        "dataset": dataclasses.asdict(dataset),
        "model": args.model,
        "variant": args.variant,
        "recipe": config.to_plain(recipe),
        "processes": distributed.world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
    }
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=1000)


def find_checkpoint(resume: str | None, folder: Path) -> Path | None:
    """The file to go on from. A run's later checkpoints are never overwritten."""
    found = checkpoint.newest(folder)
    if resume is None and found:
        raise ConfigError(f"run {folder.name} exists ({found}); go on with --resume auto or choose another --run")
    if resume in (None, "auto"):
        return found
    if found and not (Path(resume).exists() and found.samefile(resume)):
        raise ConfigError(f"--resume {resume}: run {folder.name} already goes on to {found}; choose another --run")
    return Path(resume)


def write_board(board: SummaryWriter, epochs: int, lr: float, trained: dict, tested: dict) -> None:
    board.add_scalar("lr", lr, epochs)
    for split, values in (("train", trained), ("val", tested)):
        for name, value in values.items():
            board.add_scalar(f"{split}/{name}", value, epochs)
    board.flush()


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, WeightsError, OSError))
