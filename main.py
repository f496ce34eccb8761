"""Train: ``python main.py DATASET MODEL --run NAME --num_segments T [any recipe key]``. See README.md."""

import argparse
import math
from contextlib import ExitStack

import torch
from tensorboardX import SummaryWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data import DataError, list_datasets
from engine import checkpoint, config, distributed, flags, log
from engine.checkpoint import Saver
from engine.config import ConfigError, Recipe
from engine.evaluate import evaluate
from engine.interrupt import Stopped, StopRequest
from engine.optim import set_learning_rate
from engine.prepare import Run, prepare, to_yaml
from engine.resume import find_start
from engine.run_folder import locked, log_file, run_folder
from engine.schedule import is_validated, learning_rate
from engine.train import train_one_epoch
from models import WeightsError, list_models


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="main.py",
        usage="%(prog)s DATASET MODEL --run NAME [more flags]",
        description=__doc__,
        allow_abbrev=False,
        add_help=False,  # it comes with the recipe's flags
    )
    parser.add_argument("dataset", help=f"one of {', '.join(list_datasets())}, or the path of a dataset's .yaml")
    parser.add_argument("model", help=f"one of {', '.join(list_models())}")
    parser.add_argument("--run", required=True, metavar="NAME", help="required: names net_runs/NAME/ and logs/NAME.log")
    parser.add_argument("--variant", metavar="NAME", help="a named variant of the model's recipe (default none)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one, else the CPU")
    parser.add_argument(
        "--resume",
        metavar="auto|PATH",
        help="go on from the run's newest checkpoint if it has one, or from a file (default: start a new run)",
    )
    paths = parser.add_argument_group("dataset", "each is the dataset's own unless given")
    paths.add_argument("--root", metavar="FOLDER", help="folder that the paths in the lists count from")
    paths.add_argument("--train_list", metavar="FILE", help="training videos, one a line: path #frames label")
    paths.add_argument("--val_list", metavar="FILE", help="validation videos, one a line: path #frames label")
    paths.add_argument("--image_tmpl", metavar="NAME", help="file name of a video's frames, such as {:05d}.jpg")
    paths.add_argument("--allow_overlap", action="store_true", help="train although a video stands in both lists")
    paths.add_argument("--allow_two_labels", action="store_true", help="train although a video has two labels")
    flags.add_recipe_flags(parser)
    return flags.parse_arguments(parser)


def main(args: argparse.Namespace) -> None:
    device = distributed.init(args.device)
    log.setup(enabled=distributed.is_main(), file_later=True)
    folder = run_folder(args.run)
    with ExitStack() as stack:
        # It alone takes the lock, draws the toy set, looks at the data and fetches ImageNet weights.
        with distributed.main_process_first():
            if distributed.is_main():
                stack.enter_context(locked(folder))
            run = prepare(args, find_start(args.resume, folder, args.model), device)
        # Nothing was written so far: a run that cannot start leaves nothing behind.
        if distributed.is_main():
            checkpoint.open_folder(folder)
            log.open_file(log_file(args.run))
            (folder / "config.yaml").write_text(to_yaml(run.settings), encoding="utf-8")
            board = stack.enter_context(SummaryWriter(str(folder / "tensorboard")))
        saver = Saver(folder, run.settings, run.recipe)
        stop = stack.enter_context(StopRequest())
        net, state, recipe = wrap(run.state.model, run.recipe, device), run.state, run.recipe
        while state.epoch < recipe.epochs:
            lr = learning_rate(recipe, state.epoch)
            set_learning_rate(state.optimizer, lr, recipe.lr_multipliers)
            trained, tested = train_one_epoch(net, run.train_loader, state, recipe, lr, stop, saver), {}
            if is_validated(recipe, state.epoch):
                saver.save(state)  # the epoch is not lost if its validation fails
                tested = validate(run, stop, saver)
            # The first validation makes a best checkpoint even at 0 %: what tests a run looks for that file.
            is_best = bool(tested) and (tested["top1"] > state.best or not (folder / checkpoint.BEST).exists())
            state.best = tested["top1"] if is_best else state.best
            state.next_epoch()
            if distributed.is_main():
                write_board(board, state.epoch, lr, trained, tested)
            saver.save(state, is_best)
    log.info(f"finished: {recipe.epochs} epochs, best Prec@1 {max(state.best, 0):.3f}, checkpoints in {folder}")


def wrap(model: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """The model as it is trained: compiled, and shared by the processes where there are several."""
    if recipe.compile:
        model.compile()
    if distributed.world_size() == 1:
        return model
    return DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)


def validate(run: Run, stop: StopRequest, saver: Saver) -> dict[str, float]:
    """``loss top1 top5 class_accuracy`` of the present weights. Errors: those of ``evaluate``."""
    state, recipe = run.state, run.recipe
    distributed.share_buffers(state.tested)
    try:
        _, tested, left_out = evaluate(
            state.tested,
            run.val_set,
            state.precision,
            run.plan.per_process,
            recipe.workers,
            recipe.print_every,
            name=f"epoch {state.epoch}",
            label_smoothing=recipe.label_smoothing,
            stop=stop,
            skip_bad=recipe.on_bad_video == "skip",
        )
    except Stopped:
        saver.after_step(state, stop_now=True)
    if left_out:
        counted = f"{len(left_out)} of {len(run.val_set)} videos"
        log.info(f"epoch {state.epoch}: validation WITHOUT {counted}: {config.first_few(list(left_out.values()))}")
    return tested


def write_board(board: SummaryWriter, epochs: int, lr: float, trained: dict, tested: dict) -> None:
    board.add_scalar("lr", lr, epochs)
    for split, values in (("train", trained), ("val", tested)):
        for name, value in values.items():
            if math.isfinite(value):  # Prec@5 of few classes is not defined
                board.add_scalar(f"{split}/{name}", value, epochs)
    board.flush()


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, WeightsError, OSError))
