"""Draws the curves of training runs. matplotlib is imported only when a picture is drawn."""

from pathlib import Path

# Okabe-Ito palette, whose colours colour-blind readers can tell apart, without its yellow, which is too pale for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = (".", "s", "^", "D", "v", "P", "X")  # all runs after the seventh have the second marker, and so on
SOLID, DASHED = "-", (0, (3, 1.5))

# title -> (figure of a row, line style) of each curve in the panel
PANELS = {
    "loss (solid: training, dashed: validation)": (("loss", SOLID), ("val_loss", DASHED)),
    "training Top-1, %": (("top1", SOLID),),
    "validation, % (solid: Top-1, dashed: Top-5)": (("val_top1", SOLID), ("val_top5", DASHED)),
    "learning rate": (("lr", SOLID),),
}


def draw_curves(runs: dict[str, list[dict]], path: Path) -> None:
    """Draw loss, training Top-1, validation Top-1 and Top-5, and learning rate over the epochs.

    ``runs`` is name -> rows, one for each epoch, whose keys are those in ``PANELS`` and ``epoch`` (from 0). A row may
    lack figures. Each run has its own colour and marker. The width is 900 pixels for a page, drawn at 1.5 times that.

    Errors: ``ImportError`` if matplotlib is missing; ``OSError`` if the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(runs))
    lines = -(-len(runs) // columns)
    figure = Figure(figsize=(900 / 96, 5.9 + 0.2 * lines), dpi=144, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.09, w_pad=0.09)  # inches
    for axes, (title, curves) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for i, rows in enumerate(runs.values()):
            look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}
            for key, style in curves:
                shown = [(row["epoch"], row[key]) for row in rows if key in row]
                axes.plot(*zip(*shown, strict=True), ls=style, lw=1.3, ms=3.5, markevery=-(-len(shown) // 20), **look)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("epoch, from 0 as in the log", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E5E5E5")
        axes.set_axisbelow(True)
    first = figure.axes[1].get_lines()  # one line for each run
    legend = figure.legend(first, list(runs), loc="outside lower left", ncols=columns, fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path)
