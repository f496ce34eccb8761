"""Pictures of statistics; matplotlib is imported only when one is drawn."""

from pathlib import Path

import numpy as np

from .statistics import Calibration, row_shares

DPI = 144
SIDE = 1400  # pixels; largest side of a matrix, unless its cells would be too small
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # Okabe-Ito palette
SHADES = ((255, 255, 255), (0, 114, 178), (0, 25, 40))  # of shares whose square roots are 0, 1/2 and 1
NO_VIDEOS = (204, 204, 204)


def draw_confusion(confusion: np.ndarray, names: list[str], title: str, path: Path) -> None:
    """Draw a matrix (K, K) of counts: a row for each class, a column for each prediction, both in label order.

    Each row is divided by its sum. All cells have the same whole number of pixels, and therefore every class is
    visible. If a line of text fits into a cell, rows are marked with class names; otherwise some rows are marked with
    their label. The colour shows the square root of the share, because the reader looks for errors of a few percent
    next to a diagonal near 1. Rows of classes without videos are grey.
    """
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    k = len(confusion)
    cell = max(min(SIDE // k, 60), 300 // k, 4)
    side = k * cell / DPI  # inches
    figure = Figure(figsize=(side + 2, side + 2), dpi=DPI)
    axes = figure.add_axes((1 / (side + 2), 1 / (side + 2), side / (side + 2), side / (side + 2)))
    colours = colormaps["Blues"].with_extremes(bad="#CCCCCC")
    image = axes.imshow(row_shares(confusion), colours, PowerNorm(0.5, 0, 1), interpolation="nearest")
    legible = cell >= 14  # a line of text of 7 points
    if legible:
        rows = [_short(name) if name == f"class {i}" else f"{_short(name)}  {i}" for i, name in enumerate(names)]
        axes.set_yticks(range(k), rows, fontsize=7, parse_math=False)
        axes.set_xticks(range(k), range(k), fontsize=7, rotation=90 if k > 10 else 0)
    else:
        step = next(step for step in (5, 10, 20) if step * cell >= 64)  # room for three digits
        axes.set_xticks(range(0, k, step))
        axes.set_yticks(range(0, k, step))
        axes.tick_params(labelsize=9)
        axes.grid(color=GREY, linewidth=0.3, alpha=0.5)
    axes.set_xlabel("prediction (label)")
    axes.set_ylabel("class" if legible else "class (label)")
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    bar = axes.inset_axes((1 + 0.15 / side, 0, 0.15 / side, 1))
    figure.colorbar(image, cax=bar, format=lambda share, _: f"{100 * share:g} %", ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.tick_params(labelsize=8)
    bar.set_ylabel("of the class's videos", fontsize=8)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.15)


def confusion_pixels(confusion: np.ndarray, side: int = 700) -> np.ndarray:
    """A matrix (K, K) of counts as a picture without text, (H, W, 3) uint8. It needs no matplotlib.

    The colours follow the rule of ``draw_confusion``: each row is divided by its sum, and the shade shows the square
    root of the share. Rows of classes without videos are grey. A cell has at least 4 pixels and the picture about
    ``side``, without its grey frame of one pixel.
    """
    roots = np.sqrt(row_shares(confusion))
    shades = np.stack([np.interp(roots, (0, 0.5, 1), channel) for channel in zip(*SHADES, strict=True)], axis=-1)
    shades[np.isnan(roots)] = NO_VIDEOS
    cell = max(side // len(confusion), 4)
    cells = np.round(shades).astype(np.uint8).repeat(cell, axis=0).repeat(cell, axis=1)
    framed = np.full((cells.shape[0] + 2, cells.shape[1] + 2, 3), NO_VIDEOS, np.uint8)
    framed[1:-1, 1:-1] = cells
    return framed


def draw_calibration(bins: Calibration, title: str, path: Path) -> None:
    """Draw a reliability diagram (Guo et al., ICML 2017, Figure 1): accuracy and number of videos by confidence."""
    from matplotlib.figure import Figure

    edges = np.arange(len(bins.videos) + 1) / len(bins.videos)
    centres, width = (edges[1:] + edges[:-1]) / 2, edges[1]
    figure = Figure(figsize=(5, 6), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(centres, bins.accuracy, width, color=BLUE, edgecolor="white", linewidth=0.5, label="accuracy")
    upper.plot(bins.confidence, bins.confidence, "_", color=ORANGE, markersize=14, mew=2, label="mean confidence")
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--", label="calibrated")
    upper.set_ylim(0, 1)
    upper.set_ylabel("share of right predictions")
    upper.set_title(title, loc="left", fontsize=10, parse_math=False)
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.bar(centres, 100 * bins.videos / bins.videos.sum(), width, color=GREY, edgecolor="white", linewidth=0.5)
    lower.set_xlim(0, 1)
    lower.set_ylabel("videos (%)")
    lower.set_xlabel("confidence: probability of the predicted class")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _short(name: str, length: int = 60) -> str:
    return name if len(name) <= length else f"{name[: length - 3]}..."
