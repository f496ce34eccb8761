"""Test checkpoints: ``python test_models.py DATASET --weights W[,W2] [--views 3x2 ...]``. See README.md."""

import argparse
from pathlib import Path

import numpy as np
import torch

from data import DataError, DatasetConfig, EvalDataset, load_dataset_config, read_list
from data.modality import Modality
from engine import config, distributed, log
from engine.config import ConfigError, Recipe
from engine.evaluate import evaluate
from engine.metrics import accuracy
from engine.network import build_from_recipe
from engine.precision import Precision
from models import WeightsError, list_models, load_weights
from models.weights import read_checkpoint, released_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="test_models.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("dataset", help="a name in data/ or a path to a dataset's .yaml")
    parser.add_argument("--weights", required=True, metavar="W[,W2]", help="checkpoints; several are averaged")
    parser.add_argument("--model", metavar="M[,M2]", help="their models; our own files say it themselves")
    parser.add_argument("--num_segments", metavar="T[,T2]", help="their frames; our own files say it themselves")
    parser.add_argument("--views", metavar="CROPSxCLIPS", help="1, 3, 5 or 10 crops x 1, 2 or 10 clips")
    parser.add_argument("--resize", metavar="S|HxW", help="short side, or height x width, of the whole frame")
    parser.add_argument("--crop", type=int, metavar="C", help="side of the crop cut from that")
    parser.add_argument("--input", type=int, metavar="I", help="side that the network sees")
    parser.add_argument("--short_videos", choices=config.CHOICES["test_short_videos"], help="rule for n <= T frames")
    parser.add_argument("--root", help="instead of the dataset's own")
    parser.add_argument("--list", help="instead of the dataset's val_list")
    parser.add_argument("--image_tmpl", help="instead of the dataset's own")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")
    parser.add_argument("--batch_size", type=int, default=16, help="most clips in one forward pass (default 16)")
    parser.add_argument("--workers", type=int, help="loading processes")
    parser.add_argument("--precision", default="fp32", choices=config.CHOICES["precision"], help="default: fp32")
    parser.add_argument("--scores", metavar="out.npz", help="write scores, labels and paths here")
    args = config.parse_arguments(parser)
    if args.batch_size < 1:
        parser.error(f"--batch_size {args.batch_size} must be at least 1")
    return args


def main(args: argparse.Namespace) -> None:
    device = distributed.init(args.device)
    precision = Precision(args.precision, device)
    log.setup(None, enabled=distributed.is_main())
    with distributed.main_process_first():  # it alone draws the toy set
        dataset = load_dataset_config(args.dataset, root=args.root, val_list=args.list, image_tmpl=args.image_tmpl)
        videos = read_list(dataset.val_list, dataset.num_classes)

    members, protocols = [], []
    for weights, name, frames in ensemble(args):
        with distributed.main_process_first():  # it alone says what does not fit
            model, recipe = build_member(weights, name, frames, dataset)
            test_set, protocol = make_test_set(args, recipe, dataset, videos)
        log.info(f"{weights}: {model.arch}, {protocol}, {len(videos)} videos")
        workers = recipe.workers if args.workers is None else config.coerce("workers", args.workers)
        scores, _ = evaluate(model.to(device), test_set, precision, args.batch_size, workers, recipe.print_every)
        members.append(scores)
        protocols.append(f"{model.arch} {protocol}")

    scores = np.mean(members, axis=0, dtype=np.float32)
    labels = np.array([video.label for video in videos])
    result = accuracy(scores, labels)
    log.info(
        f"{' + '.join(protocols)}, Top-1 {result['top1']:.2f}, Top-5 {result['top5']:.2f}, "
        f"mean class {result['class_accuracy']:.2f} ({len(videos)} videos of {dataset.name})"
    )
    if args.scores and distributed.is_main():
        write_scores(Path(args.scores), scores, labels, [video.path for video in videos])
        log.info(f"scores in {args.scores}")


def ensemble(args: argparse.Namespace) -> list[tuple[str, str | None, int | None]]:
    """(weights, model, num_segments) of each member; one model or frame count stands for all."""
    weights = args.weights.split(",")
    columns = []
    for flag in ("model", "num_segments"):
        given = getattr(args, flag)
        values = given.split(",") if given else [None]
        if len(values) not in (1, len(weights)):
            raise ConfigError(f"--{flag} {given} is {len(values)}, --weights are {len(weights)}; give one or as many")
        columns.append(values * len(weights) if len(values) == 1 else values)
    try:
        frames = [None if value is None else int(value) for value in columns[1]]
    except ValueError:
        raise ConfigError(f"--num_segments {args.num_segments} must be numbers split by commas") from None
    return list(zip(weights, columns[0], frames, strict=True))


def build_member(
    weights: str, name: str | None, frames: int | None, dataset: DatasetConfig
) -> tuple[torch.nn.Module, Recipe]:
    """A model with its weights, and the recipe it was trained by (its model's, if the file does not say)."""
    checkpoint = read_checkpoint(weights)
    trained = checkpoint.get("config", {})
    name = name or trained.get("model") or released_model(checkpoint)
    if name is None:
        known = ", ".join(list_models())
        raise ConfigError(f"{weights}: does not say which model it holds; name it with --model ({known})")
    config.check_key(name, list_models(), "model")
    own = trained.get("recipe", {}) if trained.get("model") == name else {}
    if frames is None and "num_segments" not in own:
        raise ConfigError(f"{weights}: does not say how many frames it was trained on; give --num_segments")
    # What an older file of ours does not say yet, or no longer means anything, is the model's recipe.
    known = {key: value for key, value in own.items() if key in config.KEYS}
    recipe = config.load_recipe(name, dataset.name, **known)
    categories = trained.get("dataset", {}).get("categories")
    if categories and dataset.categories and categories != dataset.categories:
        raise ConfigError(
            f"{weights}: was trained with other class names or another order of them than dataset {dataset.name}; "
            "its scores would be read under wrong labels"
        )
    recipe.num_segments = recipe.num_segments if frames is None else config.coerce("num_segments", frames)
    model = build_from_recipe(name, dataset.num_classes, recipe)
    log.info(str(load_weights(model, checkpoint, name=weights)))
    return model, recipe


def make_test_set(
    args: argparse.Namespace, recipe: Recipe, dataset: DatasetConfig, videos: list
) -> tuple[EvalDataset, str]:
    """The views to test, and the protocol in words: frames x crops x clips @input."""
    resize = recipe.test_resize if args.resize is None else config.parse_size(args.resize)
    num_crops, num_clips = config.parse_views(args.views or recipe.test_views)
    input_size = recipe.input_size if args.input is None else config.coerce("input_size", args.input)
    crop = recipe.test_crop if args.crop is None else config.coerce("test_crop", args.crop)
    short_videos = args.short_videos or recipe.test_short_videos
    test_set = EvalDataset(
        videos,
        dataset.root,
        dataset.image_tmpl,
        recipe.num_segments,
        resize=resize,
        crop_size=crop,
        input_size=input_size,
        short_videos=short_videos,
        num_crops=num_crops,
        num_clips=num_clips,
        modality=Modality(recipe.modality, recipe.data_length),
    )
    shown = "as stored" if resize is None else "x".join(map(str, resize)) if isinstance(resize, tuple) else resize
    views = f"{recipe.num_segments}x{num_crops}x{num_clips} @{input_size}"
    return test_set, f"{views} (resize {shown}, crop {crop}, {short_videos})"


def write_scores(path: Path, scores: np.ndarray, labels: np.ndarray, paths: list[str]) -> None:
    part = path.with_name(f"{path.name}.part")  # a file that has its name is whole
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:  # a file object, so that numpy does not add an ending of its own
            np.savez(file, scores=scores, labels=labels, paths=np.array(paths))
        part.rename(path)
    except OSError as error:
        raise ConfigError(f"--scores {path}: cannot be written ({error})") from error


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, WeightsError, OSError))
