"""Weights as a file for other programs: ``python -m scripts.export WEIGHTS --to out.pt2|out.onnx|out.safetensors``."""

import argparse
from pathlib import Path

from engine import config, distributed
from engine.config import ConfigError, Recipe
from engine.network import build_from_recipe
from models import WeightsError, list_models, load_weights
from models.export import BATCH_SIZES, ExportError, export_onnx, export_program, export_safetensors
from models.resnet import VideoResNet
from models.weights import read_checkpoint, released_model, stored_classes

ENDINGS = (".pt2", ".onnx", ".safetensors")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("weights", metavar="WEIGHTS", help="a checkpoint of ours, or a released RSA, SDA or TSM file")
    parser.add_argument("--to", required=True, metavar="OUT", help=f"the file to write: {', '.join(ENDINGS)}")
    parser.add_argument("--model", metavar="M", help="what WEIGHTS hold; our own files say it themselves")
    parser.add_argument("--num_segments", metavar="T", help="frames of a clip; our own files say it themselves")
    parser.add_argument("--num_classes", metavar="K", help="default: those of the classifier in WEIGHTS")
    parser.add_argument("--size", metavar="PX", help="height and width of a frame; default: the recipe's input_size")
    return config.parse_arguments(parser)


def main(args: argparse.Namespace) -> None:
    out = Path(args.to)
    if out.suffix not in ENDINGS:
        raise ConfigError(f"--to {out}: its ending tells the format; choose one of {', '.join(ENDINGS)}")
    if out.exists() and Path(args.weights).exists() and out.samefile(args.weights):
        raise ConfigError(f"--to {out}: is the file that is read; choose another name")
    size = None if args.size is None else positive("--size", args.size)
    checkpoint = read_checkpoint(args.weights)
    trained = run_settings(checkpoint)
    model, recipe = build(args, checkpoint, trained)
    report = load_weights(model, checkpoint, name=args.weights)
    if report.missing:  # strict loading lets an ImageNet file through
        raise ConfigError(f"{args.weights}: holds no {report.missing[0]}; train the network first, with main.py")
    print(report, flush=True)

    if out.suffix == ".safetensors":
        # Without the paths of the machine it was trained on.
        trained["dataset"] = {k: v for k, v in trained["dataset"].items() if k in ("name", "num_classes", "categories")}
        known = trained["model"] == model.arch and trained["recipe"].get("num_segments") == model.num_segments
        export_safetensors(model, out, trained if known else None)
        print(f"{out}: {model.arch}, {len(model.state_dict())} tensors, bit-equal when read back")
        return
    size = size or recipe.input_size
    difference = (export_program if out.suffix == ".pt2" else export_onnx)(model, out, size)
    shape = f"(N, {model.num_segments}, {model.in_channels}, {size}, {size})"
    print(
        f"{out}: {model.arch}, clips {shape} -> logits (N, {model.num_classes}) for any N; at N = "
        f"{' and '.join(map(str, BATCH_SIZES))} at most {difference:.2g} of the largest logit from eager"
    )


def run_settings(checkpoint: dict) -> dict:
    """Model, recipe and dataset of a run, as far as the file tells."""
    stored = checkpoint.get("config")
    stored = stored if isinstance(stored, dict) else {}
    arch = checkpoint.get("arch")
    settings = {"model": stored.get("model") or (arch if arch in list_models() else None)}
    for key in ("recipe", "dataset"):
        settings[key] = stored[key] if isinstance(stored.get(key), dict) else {}
    return settings


def build(args: argparse.Namespace, checkpoint: dict, trained: dict) -> tuple[VideoResNet, Recipe]:
    """The network of WEIGHTS, without them, and its recipe. Errors: ``ConfigError`` for what nothing says."""
    name = args.model or trained["model"] or released_model(checkpoint, args.weights)
    if name is None:
        known = ", ".join(list_models())
        raise ConfigError(f"{args.weights}: does not say which model it holds; name it with --model ({known})")
    config.check_key(name, list_models(), "model")
    own = trained["recipe"] if trained["model"] == name else {}
    # What an older file of ours does not say yet, or no longer means anything, is the model's recipe.
    own = {key: value for key, value in own.items() if key in config.KEYS}
    if args.num_segments is not None:
        own["num_segments"] = positive("--num_segments", args.num_segments)
    if "num_segments" not in own:
        raise ConfigError(f"{args.weights}: does not say how many frames it was trained on; give --num_segments")
    classes = stored_classes(checkpoint, args.weights)
    if args.num_classes is not None:
        classes = positive("--num_classes", args.num_classes)
    if classes is None:
        raise ConfigError(f"{args.weights}: holds no classifier of ours; give --num_classes")
    recipe = config.load_recipe(name, trained["dataset"].get("name", ""), **own)
    return build_from_recipe(name, classes, recipe), recipe


def positive(flag: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"{flag} {value} must be a whole number of at least 1")
    return int(value)


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, WeightsError, ExportError, OSError))
