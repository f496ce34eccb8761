"""Draws figs/memory.png from the samples of ``python -m benchmarks.memory``: ``python -m figs.draw_memory``."""

import argparse
import csv
import sys
from pathlib import Path

LISTS = {  # Okabe-Ito palette, whose colours colour-blind readers can tell apart
    "tuples": ("a Python list of tuples", "#D55E00"),
    "arrays": ("a list in arrays", "#0072B2"),
}
PANELS = {"total": "main process and 8 loading processes (MB)", "worker": "one loading process alone (MB)"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m figs.draw_memory", description=__doc__)
    parser.add_argument("--samples", type=Path, default=Path("benchmarks/memory.csv"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("figs/memory.png"), help="default: %(default)s")
    args = parser.parse_args()
    try:
        from matplotlib import pyplot
    except ImportError:
        sys.exit("error: drawing needs matplotlib; install requirements-dev.txt")
    if not args.samples.is_file():
        sys.exit(f"error: no samples {args.samples}; write them with 'python -m benchmarks.memory'")
    with args.samples.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for panel, (field, title) in zip(axes, PANELS.items(), strict=True):
        for form, (name, colour) in LISTS.items():
            mine = [row for row in rows if row["form"] == form]
            epochs, size = ([float(row[key]) for row in mine] for key in ("epochs", field))
            panel.plot(epochs, size, color=colour, linewidth=1.8)
            panel.annotate(
                f"{name}, {size[-1]:.0f} MB",
                (epochs[-1], size[-1]),
                (0, 6),
                textcoords="offset points",
                color=colour,
                ha="right",
                fontsize=9,
            )
        panel.set_ylim(0, 1.15 * max(float(row[field]) for row in rows))
        panel.set_xlim(0, None)
        panel.set_xlabel("epoch")
        panel.set_title(title, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out, dpi=140)
    print(args.out)


if __name__ == "__main__":
    main()
