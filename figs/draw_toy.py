"""Draws figs/toy.png from the logs of the toy runs: ``python -m figs.draw_toy``."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data import toy
from engine.log_lines import read_log
from figs.picture import BLUE, GREEN, GREY, SKY, VERMILION, WIDTH, import_pyplot, make_parser, save

MODELS = {
    "rsanet_tiny": ("RSANet", VERMILION),
    "sda_tsm_tiny": ("SDA-TSM", BLUE),
    "sda_tsn_tiny": ("SDA-TSN", SKY),
    "tsm_tiny": ("TSM", GREEN),
    "tsn_tiny": ("TSN", GREY),
}
SHOWN = (
    "Moving something from left to right",
    "Moving something from right to left",
    "Turning something clockwise",
    "Turning something counterclockwise",
)


def main() -> None:
    parser = make_parser("toy", __doc__)
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder with toy_<model>.log")
    args = parser.parse_args()
    pyplot = import_pyplot()

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(WIDTH, 3.4), width_ratios=(1.3, 1), layout="constrained")
    left.imshow(film([(name, 30 + i) for i, name in enumerate(SHOWN)]))
    left.set_title("two of the six pairs of classes, time from left to right", loc="left", fontsize=10)
    label_rows(left, SHOWN)

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
    save(figure, args.out)


def film(videos: Sequence[tuple[str, int]]) -> np.ndarray:
    """Eight frames of a random video of each (class, seed), one video per row, with gaps between the frames: (H, W, 3).

    The videos of a pair of classes that have the same seed are the same video, forwards and backwards.
    """
    rows = []
    for name, seed in videos:
        frames = toy.draw_video(name, np.random.default_rng(seed))
        chosen = [np.asarray(frames[i]) for i in np.linspace(0, len(frames) - 1, 8).astype(int)]
        rows.append(np.concatenate([np.pad(f, ((1, 1), (1, 1), (0, 0)), constant_values=255) for f in chosen], axis=1))
    return np.concatenate(rows)


def label_rows(axes, names: Sequence[str]) -> None:
    """Write the names beside the rows of a film."""
    axes.set_yticks([(i + 0.5) * (toy.SIZE + 2) for i in range(len(names))], [_wrapped(name) for name in names])
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)


def _wrapped(name: str) -> str:
    """The name in two lines of about the same length."""
    words = name.split()
    lengths = [max(len(" ".join(part)) for part in (words[:i], words[i:])) for i in range(1, len(words))]
    first = lengths.index(min(lengths)) + 1
    return " ".join(words[:first]) + "\n" + " ".join(words[first:])


def _label_ends(axes, ends: list[tuple], last: int) -> None:
    """Write the names at the ends of the curves. Names that would overlap are moved apart."""
    height, y = 7.5, float("inf")
    for top1, text, colour, _ in sorted(ends, reverse=True):
        y = min(top1, y - height)
        axes.annotate(text, (last, y), (6, 0), textcoords="offset points", color=colour, va="center", fontsize=9)


if __name__ == "__main__":
    main()
