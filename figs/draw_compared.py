"""Draws figs/compared.png: published Top-1 against cost and against our speed: ``python -m figs.draw_compared``.

The accuracies come from engine/published.yaml, the costs and the speed from ``python -m benchmarks.network --out``.
"""

import csv
import math
import sys
from itertools import product
from pathlib import Path

from engine.config import ConfigError
from engine.published import Row, load_published
from figs.picture import BLUE, VERMILION, WIDTH, import_pyplot, make_parser, save

OURS, OTHERS = VERMILION, BLUE  # the two papers' networks, and all others
BELOW = 10  # percentage points; a system that is further below all others is drawn at the edge
PAPERS = ("rsanet", "sda")
ANGLES = [side + turn for turn in (0, 0.5, -0.5, 1.0, -1.0, 1.4, -1.4) for side in (0, math.pi)]  # to the right, left


def main() -> None:
    parser = make_parser("compared", __doc__)
    parser.add_argument("--measured", type=Path, default=Path("benchmarks/network.csv"), help="default: %(default)s")
    parser.add_argument("--dataset", default="something_v1", help="default: %(default)s")
    args = parser.parse_args()
    pyplot = import_pyplot()
    if not args.measured.is_file():
        sys.exit(f"error: no table {args.measured}; write it with 'python -m benchmarks.network --out {args.measured}'")
    with args.measured.open(encoding="utf-8") as file:
        measured = {line["model"]: line for line in reversed(list(csv.DictReader(file)))}  # a model's first line counts
    try:
        rows = load_published().rows
    except ConfigError as error:
        sys.exit(f"error: {error}")
    points = []
    for model, line in reversed(measured.items()):
        row = chosen_row(rows, model, args.dataset, int(line["num_segments"]))
        if row is None:
            print(f"not drawn: {model}, no Top-1 with {line['num_segments']} frames on {args.dataset} is published")
        else:
            views = (row.crops or 1) * (row.clips or 1)
            points.append((row, views * float(line["multiply_adds"]) / 1e9, float(line["test_share"])))
    if not points:
        sys.exit(f"error: {args.measured}: none of its networks has a published accuracy on {args.dataset}")

    line = measured[points[0][0].model]
    figure, panels = pyplot.subplots(1, 2, figsize=(WIDTH, 5.8), sharey=True, layout="constrained")
    panels[0].set_title(f"{args.dataset}, published Top-1 (%), {line['num_segments']} frames", loc="left", fontsize=10)
    panels[0].set_xlabel("G multiply-adds of a video's test: all views, 224 px")
    panels[1].set_xlabel(f"speed of a view, TSN = 1\n({line['machine']};\n{line['size']} px, {line['precision']})")
    for panel, place in zip(panels, (1, 2), strict=True):
        draw(panel, [(point[0], point[place]) for point in points], log=place == 1)
    handles = [
        pyplot.Line2D([], [], color=colour, linestyle="", marker="o", markerfacecolor=face, label=text)
        for colour, face, text in (
            (OURS, OURS, "the two papers, one view"),
            (OTHERS, OTHERS, "others, one view"),
            (OTHERS, "white", "others, several views, or not told"),
        )
    ]
    panels[0].legend(handles=handles, frameon=False, fontsize=9, loc="lower right")
    figure.canvas.draw()  # the places of the names depend on the final layout, which then must not change
    figure.set_layout_engine("none")
    for panel, place in zip(panels, (1, 2), strict=True):
        label(panel, [(point[0], point[place]) for point in points])
    save(figure, args.out)


def chosen_row(rows: list[Row], model: str, dataset: str, frames: int) -> Row | None:
    """The published row of a model that has the fewest views, and of several such rows the first."""
    mine = [row for row in rows if (row.model, row.dataset, row.num_segments) == (model, dataset, (frames,))]
    mine = [row for row in mine if row.top1 is not None]
    return min(mine, key=lambda row: row.crops * row.clips if row.crops and row.clips else math.inf, default=None)


def floor(rows: list[Row]) -> float:
    """The lower end of the axis. Systems that are far below all others are left below it."""
    values = sorted(row.top1 for row in rows)
    gaps = [i for i in range(1, len(values)) if values[i] - values[i - 1] > BELOW]
    return values[gaps[-1] if gaps else 0] - 1.5


def draw(panel, points: list[tuple[Row, float]], log: bool = False) -> None:
    """The markers of a panel. If ``log``, its axis is logarithmic."""
    low = floor([row for row, _ in points])
    for row, x in points:
        colour, single = colour_of(row), row.crops == row.clips == 1
        shape = "o" if row.top1 >= low else "v"
        face = colour if single else "white"
        y = max(row.top1, low + 0.4)
        panel.plot(x, y, shape, color=colour, markerfacecolor=face, markersize=7, markeredgewidth=1.4)
    panel.set_ylim(low, max(row.top1 for row, _ in points) + 1)
    if log:
        panel.set_xscale("log")
        panel.set_xticks([30, 100, 300, 1000], ["30", "100", "300", "1000"])
        panel.minorticks_off()
    else:
        panel.set_xlim(0, 1.12 * max(x for _, x in points))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#EEEEEE")
    panel.set_axisbelow(True)


def label(panel, points: list[tuple[Row, float]]) -> None:
    """Write each system's name at the nearest place where it covers neither a marker nor another name."""
    low, dot = panel.get_ylim()[0], panel.figure.dpi / 72  # pixels of a point
    renderer, frame = panel.figure.canvas.get_renderer(), panel.get_window_extent()
    markers = [panel.transData.transform((x, max(row.top1, low + 0.4))) for row, x in points]
    taken = [(x - 5 * dot, y - 5 * dot, x + 5 * dot, y + 5 * dot) for x, y in markers]
    if panel.get_legend():
        taken.append(panel.get_legend().get_window_extent(renderer).extents)
    for (row, _), (x, y) in sorted(zip(points, markers, strict=True), key=lambda pair: -pair[0][0].top1):
        text = panel.text(0, 0, name_of(row, low), transform=None, fontsize=9, color=colour_of(row), va="center")
        size = text.get_window_extent(renderer)
        for radius, angle in product(range(8, 160, 4), ANGLES):
            left, middle = x + dot * radius * math.cos(angle), y + dot * radius * math.sin(angle)
            left -= size.width if math.cos(angle) < 0 else 0
            box = (left, middle - size.height / 2, left + size.width, middle + size.height / 2)
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
            if inside and not any(overlap(box, other) for other in taken):
                break
        taken.append(box)
        text.set_position((left, middle))
        if radius > 12:
            end = box[0] if math.cos(angle) > 0 else box[2]
            panel.plot([x, end], [y, middle], color="#BBBBBB", linewidth=0.7, transform=None, zorder=0)


def overlap(a: tuple, b: tuple) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def colour_of(row: Row) -> str:
    return OURS if row.model.startswith(PAPERS) else OTHERS


def name_of(row: Row, low: float) -> str:
    """The system's name, with its views if they are not one, and its Top-1 if it is below the axis."""
    views = "" if row.crops == row.clips == 1 else f", {row.crops or '?'}x{row.clips or '?'} views"
    return f"{row.system}{views}" + (f": {row.top1}" if row.top1 < low else "")


if __name__ == "__main__":
    main()
