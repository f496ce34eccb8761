"""Accuracy from score files, without the models: ``python -m scripts.print_results net_runs/*/scores.npz``."""

import argparse
import zipfile
from pathlib import Path

import numpy as np

from engine.metrics import accuracy


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.print_results", description=__doc__)
    parser.add_argument("scores", nargs="+", metavar="out.npz", help="files that test_models.py --scores wrote")
    args = parser.parse_args()
    rows = []
    for path in args.scores:
        try:
            with np.load(path, allow_pickle=False) as file:
                result = accuracy(file["scores"], file["labels"])
                rows.append((str(Path(path).parent / Path(path).stem), len(file["labels"]), result))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            parser.error(f"{path}: not a score file ({error}); write one with test_models.py --scores")
    width = max(len(name) for name, _, _ in rows)
    print(f"{'scores':{width}}  videos   Top-1   Top-5  mean class")
    for name, videos, result in rows:
        top1, top5, per_class = result["top1"], result["top5"], result["class_accuracy"]
        print(f"{name:{width}}  {videos:6}  {top1:6.2f}  {top5:6.2f}  {per_class:10.2f}")


if __name__ == "__main__":
    main()
