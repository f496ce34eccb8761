"""Draws figs/toy.png from the logs of the toy runs: ``python -m figs.draw_toy``."""

import sys
from pathlib import Path

import numpy as np

from data import toy
from engine.log_reader import read_log
from figs.picture import BLUE, GREEN, GREY, SKY, VERMILION, WIDTH, import_pyplot, make_parser, save, show_strips

MODELS = {
    "rsanet_tiny": ("RSANet", VERMILION),
    "sda_tsm_tiny": ("SDA-TSM", BLUE),
    "sda_tsn_tiny": ("SDA-TSN", SKY),
    "tsm_tiny": ("TSM", GREEN),
    "tsn_tiny": ("TSN", GREY),
}
SHOWN = {  # two pairs, and the seeds of their videos: the second class of a pair is the first one's video backwards
    "Moving something from left to right": 1,
    "Moving something from right to left": 1,
    "Turning something clockwise": 5,
    "Turning something counterclockwise": 5,
}


def main() -> None:
    parser = make_parser("toy", __doc__)
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder with toy_<model>.log")
    args = parser.parse_args()
    pyplot = import_pyplot()

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(WIDTH, 3.4), width_ratios=(1.3, 1), layout="constrained")
    show_strips(left, list(SHOWN), [film(name, seed) for name, seed in SHOWN.items()])
    left.set_title("two of six pairs of classes: a video and its reverse", loc="left", fontsize=10)

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
    right.text(9.9, 52, "limit if the order of frames is lost", color=GREY, fontsize=9, ha="right")
    last = max(end[3] for end in ends)
    _label_ends(right, ends, last)
    right.set_xlim(0.5, last)
    right.set_ylim(0, 102)
    right.set_xlabel("epoch")
    right.set_title("toy_something, validation Top-1 (%)", loc="left", fontsize=10)
    right.spines[["top", "right"]].set_visible(False)
    save(figure, args.out)


def film(name: str, seed: int) -> np.ndarray:
    """Eight frames of a random video of a class: uint8 (8, H, W, 3).

    With the same seed, the two classes of a pair give the same video, forwards and backwards.
    """
    frames = toy.draw_video(name, np.random.default_rng(seed))
    return np.stack([np.asarray(frames[i]) for i in np.linspace(0, len(frames) - 1, 8).astype(int)])


def _label_ends(axes, ends: list[tuple], last: int) -> None:
    """Write the names at the ends of the curves. Names that would overlap are moved apart."""
    height, y = 7.5, float("inf")
    for top1, text, colour, _ in sorted(ends, reverse=True):
        y = min(top1, y - height)
        axes.annotate(text, (last, y), (6, 0), textcoords="offset points", color=colour, va="center", fontsize=9)


if __name__ == "__main__":
    main()
