"""Exports weights for other programs: ``python -m scripts.export WEIGHTS --to out.pt2|out.onnx|out.safetensors``."""

import argparse
from pathlib import Path

from engine import config, distributed
from engine.config import ConfigError
from engine.flags import parse_arguments
from engine.network import build_from_checkpoint, run_settings
from models import WeightsError, load_weights
from models.export import BATCH_SIZES, ExportError, export_onnx, export_program, export_safetensors
from models.weight_files import read_checkpoint

ENDINGS = (".pt2", ".onnx", ".safetensors")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("weights", metavar="WEIGHTS", help="a checkpoint of ours, or a released RSA, SDA or TSM file")
    parser.add_argument("--to", required=True, metavar="OUT", help=f"the file to write: {', '.join(ENDINGS)}")
    parser.add_argument("--model", metavar="M", help="model of WEIGHTS; only needed if the file does not say it")
    parser.add_argument("--num_segments", metavar="T", help="frames of a clip; only needed if the file does not say it")
    parser.add_argument("--size", metavar="PX", help="height and width of a frame; default: the recipe's input_size")
    return parse_arguments(parser)


def main(args: argparse.Namespace) -> None:
    out = Path(args.to)
    if out.suffix not in ENDINGS:
        raise ConfigError(f"--to {out}: its ending tells the format; choose one of {', '.join(ENDINGS)}")
    if out.exists() and Path(args.weights).exists() and out.samefile(args.weights):
        raise ConfigError(f"--to {out}: is the file that is read; choose another name")
    size = flag("--size", "input_size", args.size)
    frames = flag("--num_segments", "num_segments", args.num_segments)
    checkpoint = read_checkpoint(args.weights)
    model, recipe = build_from_checkpoint(checkpoint, args.weights, args.model, frames, dataset=None)
    print(load_weights(model, checkpoint, name=args.weights), flush=True)

    if out.suffix == ".safetensors":
        trained = run_settings(checkpoint, args.weights)
        # The paths of the machine that trained the network are removed.
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


def flag(name: str, key: str, value: str | None) -> int | None:
    """The value of a flag. It is checked against the range of the recipe key of this name."""
    try:
        return None if value is None else config.coerce(key, value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, WeightsError, ExportError, OSError))
