"""Draws figs/toy.png from the logs of the toy runs: ``python -m figs.draw_toy``."""

import argparse
import sys
from pathlib import Path

import numpy as np

from data import toy
from engine.log_reader import read_log

MODELS = {  # Okabe-Ito palette, whose colours colour-blind readers can tell apart
    "rsanet_tiny": ("RSANet", "#D55E00"),
    "sda_tsm_tiny": ("SDA-TSM", "#0072B2"),
    "sda_tsn_tiny": ("SDA-TSN", "#56B4E9"),
    "tsm_tiny": ("TSM", "#009E73"),
    "tsn_tiny": ("TSN", "#555555"),
}
SHOWN = (
    "Moving something from left to right",
    "Moving something from right to left",
    "Turning something clockwise",
    "Turning something counterclockwise",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m figs.draw_toy", description=__doc__)
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder with toy_<model>.log")
    parser.add_argument("--out", type=Path, default=Path("figs/toy.png"))
    args = parser.parse_args()
    try:
        from matplotlib import pyplot
    except ImportError:
        sys.exit("error: drawing needs matplotlib; install requirements-dev.txt")

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.6), width_ratios=(1.15, 1), layout="constrained")
    left.imshow(_film())
    left.set_title("two of the six pairs of classes, time from left to right", loc="left", fontsize=10)
    left.set_yticks([(i + 0.5) * (toy.SIZE + 2) for i in range(len(SHOWN))], [_wrapped(name) for name in SHOWN])
    left.set_xticks([])
    left.tick_params(length=0, labelsize=8)
    left.spines[:].set_visible(False)

    ends = []
    for model, (name, colour) in MODELS.items():
        path = args.logs / f"toy_{model}.log"
        if not path.is_file():
            sys.exit(f"error: no log {path}; train it with 'python main.py toy_something {model} --run toy_{model}'")
        rows = [row for row in read_log(path) if "val_top1" in row]
        epochs, top1 = [row["epoch"] + 1 for row in rows], [row["val_top1"] for row in rows]
        right.plot(epochs, top1, color=colour, linewidth=1.8, marker="o", markersize=2.5)
        ends.append((top1[-1], f"{name} {top1[-1]:.1f}", colour, epochs[-1]))
    right.axhline(50, color="#999999", linewidth=0.8, linestyle=":")
    last = max(end[3] for end in ends)
    _label_ends(right, ends, last)
    right.set_xlim(0.5, last)
    right.set_ylim(0, 102)
    right.set_xlabel("epoch")
    right.set_title("toy_something, validation Top-1 (%)", loc="left", fontsize=10)
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out, dpi=140)
    print(args.out)


def _film() -> np.ndarray:
    """Eight frames of each shown class, one class per row, with gaps between the frames: (H, W, 3)."""
    rows = []
    for seed, name in enumerate(SHOWN):
        frames = toy.draw_video(name, np.random.default_rng(30 + seed))
        chosen = [np.asarray(frames[i]) for i in np.linspace(0, len(frames) - 1, 8).astype(int)]
        rows.append(np.concatenate([np.pad(f, ((1, 1), (1, 1), (0, 0)), constant_values=255) for f in chosen], axis=1))
    return np.concatenate(rows)


def _wrapped(name: str) -> str:
    words = name.split()
    return " ".join(words[:2]) + "\n" + " ".join(words[2:])


def _label_ends(axes, ends: list[tuple], last: int) -> None:
    """Write the names at the ends of the curves. Names that would overlap are moved apart."""
    height, y = 7.5, float("inf")
    for top1, text, colour, _ in sorted(ends, reverse=True):
        y = min(top1, y - height)
        axes.annotate(text, (last, y), (6, 0), textcoords="offset points", color=colour, va="center", fontsize=9)


if __name__ == "__main__":
    main()
