"""Train: ``python main.py DATASET MODEL --run NAME --num_segments T [any recipe key]``. See README.md."""

import argparse
import dataclasses
import platform
from pathlib import Path

import torch
import torchvision
import yaml
from tensorboardX import SummaryWriter
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from data import DataError, DatasetConfig, EvalDataset, TrainDataset, collate, load_dataset_config, read_list
from data.labels import describe_flip
from engine import checkpoint, config, distributed, log
from engine.config import ConfigError, Recipe
from engine.evaluate import evaluate
from engine.network import build_from_recipe
from engine.optim import build_sgd, parameter_groups, set_learning_rate
from engine.schedule import learning_rate
from engine.train import train_one_epoch
from models import WeightsError, list_models, load_weights
from models.weights import load_imagenet


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
        recipe = config.load_recipe(args.model, dataset.name, args.variant, **config.given_recipe_flags(args))
        resume = find_checkpoint(args.resume, folder)
        state = checkpoint.read_for_resume(resume, args.model) if resume else None
        train_loader, val_set = make_data(dataset, recipe, device)
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
    log.setup(Path("logs") / f"{args.run}.log", enabled=distributed.is_main())
    settings = describe(args, dataset, recipe, device)
    if distributed.is_main():
        (folder / "config.yaml").write_text(settings, encoding="utf-8")
    log.info(settings)
    log.info(describe_flip(recipe.flip, dataset.categories, dataset.mirror_pairs))
    world, per_process = distributed.world_size(), train_loader.batch_size
    log.info(f"batch: {world} processes x {per_process} clips = {world * per_process}, lr {recipe.lr}")

    with distributed.main_process_first():  # it alone fetches ImageNet weights
        model, optimizer = make_model(args.model, dataset.num_classes, recipe, device, from_imagenet=not resume)
    start, best = 0, 0.0
    if state:
        load_weights(model, state, name=str(resume))
        checkpoint.restore_optimizer(optimizer, state, resume)
        start, best = state["epoch"], state["best_prec1"]
        log.info(f"resumed from {resume}: {start} of {recipe.epochs} epochs done, best Prec@1 {best:.3f}")
        for change in checkpoint.changes(state, config.to_plain(recipe)):
            log.info(f"changed since that checkpoint: {change}")
    net = DistributedDataParallel(model, [device.index] if device.type == "cuda" else None) if world > 1 else model
    board = SummaryWriter(str(folder / "tensorboard")) if distributed.is_main() else None

    for epoch in range(start, recipe.epochs):
        # Seeded by epoch, so that a resumed run draws what an undisturbed one would.
        torch.manual_seed((recipe.seed * 1000 + epoch) * 1000 + distributed.rank())
        train_loader.sampler.set_epoch(epoch)
        train_loader.dataset.epoch = epoch
        lr = learning_rate(recipe, epoch)
        set_learning_rate(optimizer, lr, recipe.lr_multipliers)
        trained = train_one_epoch(net, train_loader, optimizer, recipe, epoch, lr, device)

        done, is_best, tested = epoch + 1, False, {}
        if done % recipe.eval_every == 0 or done > recipe.epochs - max(1, recipe.eval_last):
            distributed.share_buffers(model)
            loading = {"batch_size": per_process, "workers": recipe.workers, "print_every": recipe.print_every}
            _, tested = evaluate(model, val_set, device, **loading, label_smoothing=recipe.label_smoothing)
            # The first validation makes a best checkpoint even at 0 %: what tests a run looks for that file.
            is_best = tested["top1"] > best or not (folder / checkpoint.BEST).exists()
            best = max(tested["top1"], best)
        if distributed.is_main():
            board.add_scalar("lr", lr, done)
            for split, values in (("train", trained), ("val", tested)):
                for name, value in values.items():
                    board.add_scalar(f"{split}/{name}", value, done)
            board.flush()
            state = {"epoch": done, "arch": args.model, "state_dict": model.state_dict(), "best_prec1": best}
            state |= {"optimizer": optimizer.state_dict(), "config": yaml.safe_load(settings)}
            checkpoint.save(folder, state, is_best, recipe.keep_checkpoints)
    log.info(f"finished: {recipe.epochs} epochs, best Prec@1 {best:.3f}, checkpoints in {folder}")


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


def make_model(
    name: str, num_classes: int, recipe: Recipe, device: torch.device, from_imagenet: bool
) -> tuple[torch.nn.Module, torch.optim.SGD]:
    torch.manual_seed(recipe.seed)
    model = build_from_recipe(name, num_classes, recipe)
    if recipe.pretrained and from_imagenet:
        log.info(str(load_imagenet(model, recipe.pretrained)))
    model = model.to(device).train()  # partial BN freezes in train(), before the groups are made
    groups = parameter_groups(model, recipe.fc_lr_mult, recipe.fc_bias_lr_mult, recipe.sda_lr_mult)
    for group in groups:
        lr_mult = group["lr_mult"] if recipe.lr_multipliers else "1 (lr_multipliers is off)"
        shown = f"lr_mult: {lr_mult}, decay_mult: {group['decay_mult']}"
        log.info(f"group: {group['name']} has {len(group['params'])} params, {shown}")
    return model, build_sgd(groups, recipe.lr, recipe.momentum, recipe.nesterov, recipe.weight_decay)


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


def make_data(dataset: DatasetConfig, recipe: Recipe, device: torch.device) -> tuple[DataLoader, EvalDataset]:
    world = distributed.world_size()
    per_process = recipe.batch_size or recipe.global_batch_size // world
    if not recipe.batch_size and recipe.global_batch_size % world:
        raise ConfigError(
            f"global_batch_size {recipe.global_batch_size} does not divide by {world} processes; "
            "change it, or give --batch_size for one process"
        )
    source = {"root": dataset.root, "image_tmpl": dataset.image_tmpl, "num_segments": recipe.num_segments}
    train_set = TrainDataset(
        read_list(dataset.train_list, dataset.num_classes),
        **source,
        resize=recipe.train_resize,
        input_size=recipe.input_size,
        flip=recipe.flip,
        mirror_pairs=dataset.mirror_pairs,
        seed=recipe.seed,
    )
    val_set = EvalDataset(
        read_list(dataset.val_list, dataset.num_classes),
        **source,
        resize=recipe.val_resize,
        crop_size=recipe.val_crop,
        input_size=recipe.input_size,
        short_videos=recipe.val_short_videos,
    )
    sampler = DistributedSampler(train_set, world, distributed.rank(), seed=recipe.seed, drop_last=True)
    loader = DataLoader(
        train_set,
        per_process,
        sampler=sampler,
        num_workers=recipe.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    if not len(loader):
        raise ConfigError(
            f"{dataset.train_list}: {len(train_set)} videos are fewer than one batch of "
            f"{world * per_process}; lower --batch_size"
        )
    return loader, val_set


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, WeightsError, OSError))
