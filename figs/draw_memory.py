"""Draws figs/memory.png from the samples of ``python -m benchmarks.memory``: ``python -m figs.draw_memory``."""

import csv
import sys
from pathlib import Path

from figs.picture import BLUE, VERMILION, WIDTH, import_pyplot, make_parser, save

LISTS = {"tuples": ("a Python list of tuples", VERMILION), "arrays": ("a list in arrays", BLUE)}
PANELS = {"total": "main process and 8 loading processes (MB)", "worker": "one loading process alone (MB)"}


def main() -> None:
    parser = make_parser("memory", __doc__)
    parser.add_argument("--samples", type=Path, default=Path("benchmarks/memory.csv"), help="default: %(default)s")
    args = parser.parse_args()
    pyplot = import_pyplot()
    if not args.samples.is_file():
        sys.exit(f"error: no samples {args.samples}; write them with 'python -m benchmarks.memory'")
    with args.samples.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    figure, axes = pyplot.subplots(1, 2, figsize=(WIDTH, 3.4), layout="constrained")
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
    save(figure, args.out)


if __name__ == "__main__":
    main()
