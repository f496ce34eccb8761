"""Train: ``python main.py DATASET MODEL --run NAME --num_segments T [any recipe key]``. See README.md."""

import argparse
from contextlib import ExitStack

import engine.threads  # noqa: F401  before torch, which reads these settings when it is imported

# isort: split
import torch

from data import DataError, list_datasets
from engine import checkpoint, distributed, flags, log
from engine.board import Board
from engine.config import ConfigError
from engine.interrupt import StopRequest
from engine.optim import set_learning_rate
from engine.prepare import prepare
from engine.resume import find_start
from engine.run_folder import locked, log_file, run_folder
from engine.schedule import is_validated, learning_rate
from engine.time_left import TimeLeft
from engine.train import train_one_epoch, validate
from models import WeightsError, list_models


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="main.py",
        usage="%(prog)s DATASET MODEL --run NAME [more flags]",
        description=__doc__,
        allow_abbrev=False,
        add_help=False,  # add_recipe_flags adds it
    )
    parser.add_argument("dataset", help=f"one of {', '.join(list_datasets())}, or the path of a dataset's .yaml")
    parser.add_argument("model", help=f"one of {', '.join(list_models())}")
    parser.add_argument("--run", required=True, metavar="NAME", help="required: names net_runs/NAME/ and logs/NAME.log")
    parser.add_argument("--variant", metavar="NAME", help="a named variant of the model's recipe (default none)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one, else the CPU")
    resume = "auto: go on from the run's newest checkpoint, if any; PATH: go on from a file (default: a new run)"
    parser.add_argument("--resume", metavar="auto|PATH", help=resume)
    paths = parser.add_argument_group("dataset", "the default of each is the dataset's own")
    paths.add_argument("--root", metavar="FOLDER", help="folder that the paths in the lists are relative to")
    paths.add_argument("--train_list", metavar="FILE", help="training videos, one per line: path #frames label")
    paths.add_argument("--val_list", metavar="FILE", help="validation videos, one per line: path #frames label")
    paths.add_argument("--image_tmpl", metavar="NAME", help="file name of a video's frames, such as {:05d}.jpg")
    paths.add_argument("--allow_overlap", action="store_true", help="train although both lists contain the same video")
    paths.add_argument("--allow_two_labels", action="store_true", help="train although a video has two labels")
    text = "do not count the frames of the videos before training (this is done once for a dataset)"
    paths.add_argument("--skip_data_check", action="store_true", help=text)
    flags.add_recipe_flags(parser)
    return flags.parse_arguments(parser)


def main(args: argparse.Namespace) -> None:
    device = distributed.init(args.device)
    log.setup(enabled=distributed.is_main(), file_later=True)
    folder = run_folder(args.run)
    with ExitStack() as stack:
        # Rank 0 takes the lock, draws the toy set, checks the data and downloads ImageNet weights.
        with distributed.main_process_first():
            if distributed.is_main():
                stack.enter_context(locked(folder))
            run = prepare(args, find_start(args.resume, folder, args.model), device)
        # Until here nothing is written. A run that cannot start therefore leaves no files behind.
        if distributed.is_main():
            checkpoint.open_folder(folder)
            log.open_file(log_file(args.run))
            (folder / "config.yaml").write_text(run.settings_yaml, encoding="utf-8")
        steps = run.train_loader.batch_sampler.steps
        board = stack.enter_context(Board(folder / "tensorboard", run.settings, run.state, steps))
        time_left = TimeLeft(run.recipe, steps)
        stop = stack.enter_context(StopRequest())
        saver = checkpoint.Saver(folder, run.settings, run.recipe)
        state, recipe = run.state, run.recipe
        # Only training is compiled. Validation, checkpoints and averaged weights use the network itself.
        net = distributed.data_parallel(torch.compile(state.model) if run.compiled else state.model, device)
        while state.epoch < recipe.epochs:
            lr = learning_rate(recipe, state.epoch)
            set_learning_rate(state.optimizer, lr, recipe.lr_multipliers)
            trained = train_one_epoch(net, run.train_loader, state, recipe, lr, stop, saver, board, time_left)
            tested, confusion = {}, None
            if is_validated(recipe, state.epoch):
                saver.save(state)  # the epoch is then not lost if its validation fails
                tested, confusion = validate(run.val_set, state, recipe, run.plan.per_process, stop, saver)
            # The first validation writes a best checkpoint even at 0 %, because users test a run with this file.
            is_best = bool(tested) and (tested["top1"] > state.best or not (folder / checkpoint.BEST).exists())
            state.best = tested["top1"] if is_best else state.best
            state.next_epoch()
            log.info(time_left.epoch_line(state, tested))
            board.write(state, lr, trained, tested, confusion)
            saver.save(state, is_best)
    log.info(f"finished: {recipe.epochs} epochs, best Prec@1 {max(state.best, 0):.3f}, checkpoints in {folder}")


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, WeightsError, OSError))
