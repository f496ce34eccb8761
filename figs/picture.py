"""What all drawing programs share: their flags, matplotlib, a width and colours, and saving."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

WIDTH = 9  # inches. README shows pictures 900 px wide, so a letter of 9 points is 12.5 px high there.
DPI = 160

# Okabe-Ito palette, whose colours colour-blind readers can tell apart
VERMILION, BLUE, SKY, GREEN, YELLOW, PURPLE = "#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7"
GREY = "#555555"


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of ``python -m figs.draw_<name>``, with the flag ``--out``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m figs.draw_{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path(f"figs/{name}.png"), help="default: %(default)s")
    return parser


def import_pyplot():
    """matplotlib's pyplot with its own defaults, so that a user's matplotlibrc does not change the pictures.

    It is imported only here, because ``--help`` must work without matplotlib.

    Errors: the program ends with one line if matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        sys.exit("error: drawing needs matplotlib; pip install matplotlib")
    pyplot.rcdefaults()
    pyplot.rcParams.update({"font.size": 9, "figure.dpi": DPI})
    return pyplot


def two_lines(name: str) -> str:
    """The name in two lines of about the same length, if it has several words."""
    words = name.split()
    if len(words) < 2:
        return name
    lengths = [max(len(" ".join(part)) for part in (words[:i], words[i:])) for i in range(1, len(words))]
    first = lengths.index(min(lengths)) + 1
    return " ".join(words[:first]) + "\n" + " ".join(words[first:])


def show_strips(axes, names: Sequence[str], videos: Sequence[np.ndarray]) -> None:
    """Draw videos, uint8 (T, H, W, 3), as strips of frames below each other, with their names on the left."""
    frames = np.pad(np.stack(videos), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    rows, _, height, _, _ = frames.shape
    axes.imshow(np.concatenate([np.concatenate(row, axis=1) for row in frames]), interpolation="nearest")
    axes.set_yticks([(i + 0.5) * height for i in range(rows)], [two_lines(name) for name in names])
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)


def save(figure, file: Path) -> None:
    """Write the picture on a white background, which dark pages need, close it, and print the file's name.

    Errors: the program ends with one line if the file cannot be written.
    """
    from matplotlib import pyplot

    try:
        figure.savefig(file, facecolor="white", pil_kwargs={"optimize": True})
    except (OSError, ValueError) as error:  # matplotlib raises ValueError for an unknown ending
        sys.exit(f"error: {file}: cannot be written ({error}); choose another --out")
    finally:
        pyplot.close(figure)
    print(file)
