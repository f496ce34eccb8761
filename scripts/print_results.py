"""Print the accuracy of score files, without the models: ``python -m scripts.print_results net_runs/*/scores.npz``."""

import argparse
import signal
import sys
from pathlib import Path

from reports.accuracy import accuracy, percent_text
from reports.scores import ScoresError, read_scores


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.print_results", description=__doc__)
    parser.add_argument("scores", nargs="+", metavar="out.npz", help="files that test_models.py --scores wrote")
    args = parser.parse_args()
    try:
        files = [read_scores(path) for path in args.scores]
    except ScoresError as error:
        sys.exit(f"error: {error}")
    rows = [
        (str(Path(file.path).with_suffix("")), len(file.labels), accuracy(file.scores, file.labels)) for file in files
    ]
    width = max(len(name) for name, _, _ in rows)
    print(f"{'scores':{width}}  videos   Top-1   Top-5  mean class")
    for name, videos, result in rows:
        top1, top5, per_class = result["top1"], result["top5"], result["class_accuracy"]
        print(f"{name:{width}}  {videos:6}  {top1:6.2f}  {percent_text(top5, '-'):>6}  {per_class:10.2f}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "| head" ends the program without a traceback
    main()
