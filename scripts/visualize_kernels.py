"""Draws the kernels of a network's RSA layers: ``python -m scripts.visualize_kernels WEIGHTS CLIP --position y,x``.

CLIP is a video file or a folder of frames. The picture shows the frames that the network sees. Below each frame, it
shows the weights with which a layer, at the marked position, looks at this frame.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data import DataError
from data.messages import one_line
from engine import distributed, log
from engine.config import ConfigError
from engine.flags import parse_arguments
from models import WeightsError
from ops.rsa import RELATIONS
from scripts.rsa_layers import LayerKernels, Place, Seen, look, open_network

ENDINGS = (".png", ".pdf", ".svg")
PARTS = {None: "kernels", "V": "basic kernels", "R": "relational kernels", "VplusR": "basic + relational kernels"}

# Sizes in inches. A README shows a picture of 9 inches at 900 px.
WIDTH, LABEL, BAR, GAP, LINE = 9.0, 1.7, 0.7, 0.06, 0.15
TOP, NUMBERS = 1.07, 0.2  # of the heading, and of the numbers above the frames
SMALL, NORMAL = 8, 10  # pt
MOST = 9  # frames that are shown; of a longer clip, those around the positions
POSITIVE, NEGATIVE, OUTSIDE, MARK = "#D55E00", "#0072B2", "#DDDDDD", "#F0E442"  # Okabe-Ito palette, and a grey


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.visualize_kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("weights", metavar="WEIGHTS", help="a checkpoint of a network with RSA layers")
    parser.add_argument("clip", metavar="CLIP", help="a video file or a folder of frames")
    parser.add_argument(
        "--position",
        action="append",
        metavar="y,x",
        help="whose kernels: a pixel of the frames as the picture shows them, after resize and crop; 0,0 is the upper "
        "left one; repeatable (default: the centre)",
    )
    parser.add_argument("--frame", metavar="K", help="the frame of the positions, from 1 (default: the middle)")
    parser.add_argument(
        "--layer", action="append", metavar="NAME", help="such as layer1.2.conv2; repeatable (default: all)"
    )
    heads = "one head, a row for each, or their mean (default: of each layer, the head with the largest weights)"
    parser.add_argument("--head", metavar="K|all|mean", help=heads)
    parser.add_argument(
        "--part",
        choices=RELATIONS,
        help="the basic kernel (V), the relational kernel (R) or their sum (default: what the network has)",
    )
    parser.add_argument(
        "--out", metavar="FILE", default="kernels.png", help=f"{', '.join(ENDINGS)}; default: %(default)s"
    )
    parser.add_argument("--model", metavar="M", help="model of WEIGHTS; only needed if the file does not say it")
    parser.add_argument("--num_segments", metavar="T", help="frames of a clip; only needed if the file does not say it")
    parser.add_argument("--resize", metavar="S|HxW", help="of the frames before the crop; default: the recipe's")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    return parse_arguments(parser)


def main(args: argparse.Namespace) -> None:
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ConfigError("drawing needs matplotlib; pip install matplotlib") from None
    log.setup()
    if Path(args.out).suffix not in ENDINGS:
        raise ConfigError(f"--out {args.out}: its ending tells the format; choose one of {', '.join(ENDINGS)}")
    device = distributed.init(args.device)
    member = open_network(args.weights, args.model, args.num_segments, args.resize)
    frames, side = member.recipe.num_segments, member.views.input
    frame = (frames + 1) // 2 if args.frame is None else read_number("--frame", args.frame, frames)
    places = [(frame - 1, *read_position(text, side)) for text in args.position or [f"{side // 2},{side // 2}"]]
    seen = look(member, args.clip, places, args.part, args.layer, device)
    head = args.head
    if head not in (None, "all", "mean"):
        head = read_number("--head", head, min(layer.kernels.shape[1] for layer in seen.layers))
    title = f"RSA's {PARTS[args.part]} in {member.model.arch}: {one_line(Path(args.clip).name, 60)}"
    figure = draw(pyplot, seen, title, head)
    figure.savefig(args.out)
    pyplot.close(figure)
    log.info(f"{args.out}: frame {frame} of {frames}, layers {', '.join(layer.name for layer in seen.layers)}")


def read_number(flag: str, text: str, largest: int) -> int:
    """The value of a flag.

    Errors: ``ConfigError`` unless it is a whole number from 1 to ``largest``.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= largest:
        others = ", all or mean" if flag == "--head" else ""
        raise ConfigError(f"{flag} {text} must be a number from 1 to {largest}{others}")
    return int(text)


def read_position(text: str, side: int) -> tuple[int, int]:
    """(y, x) from ``"y,x"``.

    Errors: ``ConfigError`` unless this is a pixel of a frame of side x side.
    """
    if not re.fullmatch(r"[0-9]{1,9},[0-9]{1,9}", text):
        raise ConfigError(f"--position {text} must be two whole numbers y,x, such as {side // 2},{side // 2}")
    y, x = map(int, text.split(","))
    if max(y, x) >= side:
        raise ConfigError(
            f"--position {text} is outside of the frame, because the network sees {side}x{side} px; choose y and x "
            f"from 0 to {side - 1}"
        )
    return y, x


def draw(pyplot, seen: Seen, title: str, head: int | str | None = None):
    """The figure: for each place a row of frames, and below it the rows of the layers. All places are in one frame.

    ``head`` is a number from 1, ``"all"``, ``"mean"``, or ``None`` for the strongest head of each layer.
    """
    t = seen.places[0][0]
    first = min(max(t - MOST // 2, 0), max(len(seen.frames) - MOST, 0))
    frames = range(first, min(first + MOST, len(seen.frames)))
    side = (WIDTH - LABEL - BAR) / len(frames)
    pitch = max(side, 3 * LINE) + GAP
    rows = sum(layer.kernels.shape[1] if head == "all" else 1 for layer in seen.layers)
    block = NUMBERS + (1 + rows) * pitch + 2 * GAP
    figure = pyplot.figure(figsize=(WIDTH, TOP + len(seen.places) * block), dpi=200, facecolor="white")
    pen = Pen(figure, LABEL, side, frames)
    pen.heading(title, [f"The network's answer: {one_line(seen.answer, 100)}"])
    for place, (_, y, x) in enumerate(seen.places):
        top = TOP + place * block + NUMBERS
        length, height, width, _ = seen.frames.shape
        pen.label(top, [f"position {y},{x}", f"of frame {t + 1} of {length}", f"{width}x{height} px"])
        pen.frames(top, seen.frames, seen.places[place], seen.layers)
        for layer in seen.layers:
            for i, (name, kernel) in enumerate(chosen_heads(layer, place, head)):
                top += pitch
                pen.label(top, [*layer_words(layer), name] if i == 0 else [name])
                pen.kernel(top, kernel, layer.limit, t)
                if i == 0:
                    pen.bar(top, layer.limit)
    return figure


def chosen_heads(layer: LayerKernels, place: int, head: int | str | None) -> list[tuple[str, np.ndarray]]:
    """A name and a kernel (kT, kH, kW) for each row of a layer."""
    kernels, heads = layer.kernels[place], len(layer.kernels[place])
    if head == "mean":
        return [(f"mean of {heads} heads", kernels.mean(0))]
    if head == "all":
        return [(f"head {i} of {heads}", kernel) for i, kernel in enumerate(kernels, 1)]
    i = layer.strongest(place) if head is None else head - 1
    return [(f"head {i + 1} of {heads}" + (", the strongest" if head is None else ""), kernels[i])]


def layer_words(layer: LayerKernels) -> list[str]:
    """Two lines: the layer's name, and the size of its kernel in cells and in pixels of the frame."""
    kernel = layer.kernels.shape[-2:]
    pixels = "x".join(str(round(k * cell)) for k, cell in zip(kernel, layer.cell, strict=True))
    return [f"{stage_of(layer.name)}: {layer.name}", f"{kernel[0]}x{kernel[1]} weights, {pixels} px"]


def stage_of(name: str) -> str:
    """The papers' name of a ResNet's stage, such as ``"res2"`` for ``"layer1.2.conv2"``; for other layers "RSA"."""
    match = re.match(r"layer([1-4])\.", name)
    return f"res{int(match[1]) + 1}" if match else "RSA"


class Pen:
    """Draws into a figure. Places are inches from the left and from the top.

    ``left`` is the place of the first column, and ``side`` the width of a column. Each column is for one of ``frames``.
    """

    def __init__(self, figure, left: float, side: float, frames: range):
        from matplotlib.colors import LinearSegmentedColormap

        self.figure, self.side = figure, side
        self.columns = {k: left + i * side for i, k in enumerate(frames)}
        colours = LinearSegmentedColormap.from_list("weights", [NEGATIVE, "white", POSITIVE])
        self.colours = colours.with_extremes(bad=OUTSIDE)

    def heading(self, title: str, lines: Sequence[str] = ()) -> None:
        """The title, and what colours and marks mean."""
        self.text(GAP, 0.2, title, NORMAL, fontweight="bold")
        lines = [
            *lines,
            "Below each frame: the weights that the ringed position gives to the part of this frame around it.",
            "A box is such a part. The smallest one belongs to the first layer; deeper layers see more.",
        ]
        for i, line in enumerate(lines):
            self.text(GAP, 0.42 + i * (LINE + 0.02), line)
        left, base = GAP, 0.44 + len(lines) * (LINE + 0.02)
        legend = ((POSITIVE, "positive"), (NEGATIVE, "negative"), (OUTSIDE, "outside of the frame, no effect"))
        for colour, name in legend:
            self.axes(left, base - 0.1, 0.12).set_facecolor(colour)
            self.text(left + 0.17, base, name)
            left += 0.9
        self.text(left + 1.2, base, "\N{BLACK CIRCLE} the ringed position itself")

    def frames(self, top: float, frames: np.ndarray, place: Place, layers: Sequence[LayerKernels]) -> None:
        """The frames (T, H, W, 3) with their numbers, the place, and the parts that the layers' kernels cover."""
        t, y, x = place
        for k, left in self.columns.items():
            self.text(left + (self.side - GAP) / 2, top - 0.05, f"frame {k + 1}", ha="center")
            axes = self.axes(left, top, self.side - GAP)
            axes.imshow(frames[k], interpolation="nearest")
            for layer in layers:
                if abs(k - t) <= layer.kernels.shape[2] // 2:
                    box(axes, layer, y, x)
            if k == t:
                for colour, width in (("black", 2.6), (MARK, 1.4)):
                    axes.plot(x, y, "o", color="none", markeredgecolor=colour, markersize=8, markeredgewidth=width)

    def kernel(self, top: float, kernel: np.ndarray, limit: float, t: int) -> None:
        """The slices of a kernel (kT, kH, kW) at frame t, below the frames that they look at."""
        for k, weights in enumerate(kernel, t - len(kernel) // 2):
            if k in self.columns:
                axes = self.axes(self.columns[k], top, self.side - GAP)
                axes.imshow(weights, self.colours, vmin=-limit, vmax=limit, interpolation="nearest")
                if k == t:
                    axes.plot(weights.shape[1] // 2, weights.shape[0] // 2, ".", color="black", markersize=3)

    def bar(self, top: float, limit: float) -> None:
        """The colour bar of a row, at the right end of the figure."""
        height = self.side - GAP
        axes = self.axes(WIDTH - BAR + GAP, top, 0.1, height)
        axes.imshow(np.linspace(1, -1, 64)[:, None], self.colours, aspect="auto")
        for value, base in ((limit, 0.1), (-limit, height)):
            self.text(WIDTH - BAR + 0.2, top + base, f"{value:.2g}".replace("-", "\N{MINUS SIGN}"))

    def label(self, top: float, lines: list[str]) -> None:
        """The words at the left of a row. The first of several lines is bold."""
        for i, line in enumerate(lines):
            weight = "bold" if i == 0 and len(lines) > 1 else "normal"
            self.text(GAP, top + 0.12 + i * LINE, line, fontweight=weight)

    def text(self, left: float, base: float, text: str, size: int = SMALL, **options) -> None:
        """Write text, whose "$" are no formulas. ``base`` is the place of its lower edge."""
        up = 1 - base / self.figure.get_figheight()
        self.figure.text(left / WIDTH, up, text, fontsize=size, parse_math=False, **options)

    def axes(self, left: float, top: float, width: float, height: float | None = None):
        """Axes with a thin frame and without numbers. They are square if no height is given."""
        whole, height = self.figure.get_figheight(), height or width
        axes = self.figure.add_axes((left / WIDTH, 1 - (top + height) / whole, width / WIDTH, height / whole))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color="#999999", linewidth=0.5)
        return axes


def box(axes, layer: LayerKernels, y: int, x: int) -> None:
    """Draw the part of the frame that the layer's kernel covers at pixel y, x."""
    (height, width), (kh, kw) = layer.cell, layer.kernels.shape[-2:]
    top, left = (y // height - kh // 2) * height - 0.5, (x // width - kw // 2) * width - 0.5
    limits = axes.get_xlim(), axes.get_ylim()  # plotting would change them
    bottom, right = top + kh * height, left + kw * width
    axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=MARK, linewidth=0.8)
    axes.set(xlim=limits[0], ylim=limits[1])


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, WeightsError, OSError))
