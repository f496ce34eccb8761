"""Draws figs/kernels.png, kernels of RSANet in a toy clip and in its reverse: ``python -m figs.draw_kernels``.

The weights are those of ``python main.py toy_something rsanet_tiny --run figures_rsanet_tiny``.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import DataError, toy
from data.sampling import AS_IT_IS, FrameOrder
from engine import distributed
from engine.config import ConfigError
from engine.testing import Member
from figs.picture import import_pyplot, make_parser, save
from figs.trained import check_weights, default_weights
from models import WeightsError
from scripts.rsa_layers import Seen, look, open_network
from scripts.visualize_kernels import BAR, GAP, LINE, WIDTH, Pen, stage_of

MODEL = "rsanet_tiny"
CATEGORY, SEED = "Moving something from left to right", 37
PLACES = {"On the object": (0.39, 0.45), "On the background": (0.67, 0.45)}  # y, x as shares of the frame
REACH = 2  # frames before and after the positions' frame that are shown; RSA's default kernel covers as many
LABEL, BETWEEN, TOP = 1.65, 0.2, 1.22  # inches
TITLE = "Kernels of a trained RSANet: the same positions in a clip and in its reverse"
LINES = [
    "Right: the left clip, played backwards. The rings mark one place of one picture. Bold: the network's answer.",
    "The basic kernel depends on the ringed position alone. The relational kernel also depends on what surrounds it.",
]


class Row(NamedTuple):
    """A row of kernels. The numbers are from 0."""

    place: int
    part: str  # "V" or "R"
    layer: int
    head: int


def main() -> None:
    parser = make_parser("kernels", __doc__)
    parser.add_argument("--weights", type=Path, default=default_weights(MODEL), help="default: %(default)s")
    args = parser.parse_args()
    distributed.run_program(lambda: draw(args.weights, args.out), (ConfigError, DataError, WeightsError, OSError))


def draw(weights: Path, out: Path) -> None:
    """Draw the picture.

    Errors: ``ConfigError`` if there is no checkpoint, and the errors of ``open_network`` and ``look``.
    """
    pyplot = import_pyplot()
    check_weights(weights, MODEL)
    clips = see_clips(open_network(str(weights)))
    rows = choose_rows(clips)
    side = (WIDTH - LABEL - BAR - BETWEEN) / (2 * (2 * REACH + 1))
    pitch, block = side + GAP, 2.6 * LINE
    height = TOP + len(PLACES) * block + (len(PLACES) + len(rows)) * pitch
    figure = pyplot.figure(figsize=(WIDTH, height), dpi=200, facecolor="white")
    pens = []
    for i, clip in enumerate(clips):
        (t, *_), frames = clip["R"].places[0], len(clip["R"].frames)
        shown = range(max(t - REACH, 0), min(t + REACH + 1, frames))
        pens.append(Pen(figure, LABEL + i * ((2 * REACH + 1) * side + BETWEEN), side, shown))
    pens[0].heading(TITLE, LINES)

    top, place = TOP - pitch, None
    for row in rows:
        top += pitch
        if row.place != place:  # the frames of the next place
            place = row.place
            top += block
            y, x = clips[0]["R"].places[place][1:]
            covered = {other.layer for other in rows if other.place == place}
            pens[0].label(top, [list(PLACES)[place], f"position {y},{x}"])
            for pen, clip in zip(pens, clips, strict=True):
                pen.frames(top, clip["R"].frames, clip["R"].places[place], [clip["R"].layers[i] for i in covered])
                pen.text(min(pen.columns.values()), top - 0.2, clip["R"].answer, fontweight="bold")
            top += pitch
        kernels = [clip[row.part].layers[row.layer].kernels[place, row.head] for clip in clips]
        left, right = (np.nansum(kernel**2) ** 0.5 for kernel in kernels)
        limit = float(np.nanmax(np.abs(kernels)))
        kind, note = "relational", f"norm {left:.2g} left, {right:.2g} right"
        if row.part == "V":
            kind, note = "basic", "the same in both"
        stage = stage_of(clips[0]["R"].layers[row.layer].name)
        pens[0].label(top, [f"{stage}, {kind}", f"head {row.head + 1}", note])
        pens[0].bar(top, limit)
        for pen, clip, kernel in zip(pens, clips, kernels, strict=True):
            pen.kernel(top, kernel, limit, clip[row.part].places[place][0])
    save(figure, out)


def see_clips(member: Member) -> list[dict[str, Seen]]:
    """The kernels of both parts, ``"V"`` and ``"R"``, in a clip and in its reverse."""
    frames, side = member.recipe.num_segments, member.views.input
    middle, clips = (frames - 1) // 2, []
    with tempfile.TemporaryDirectory() as folder:
        for number, frame in enumerate(toy.draw_video(CATEGORY, np.random.default_rng(SEED)), 1):
            frame.save(Path(folder) / f"{number}.png")
        for order, t in ((AS_IT_IS, middle), (FrameOrder("reverse"), frames - 1 - middle)):
            places = [(t, int(y * side), int(x * side)) for y, x in PLACES.values()]
            clips.append({part: look(member, folder, places, part, order=order) for part in "VR"})
    return clips


def choose_rows(clips: list[dict[str, Seen]]) -> list[Row]:
    """The rows of the picture.

    In the first layer, on the object, these are the relational kernels of two heads: those with the largest and the
    smallest difference between their strength in the clip and that in its reverse. In other layers and on the
    background, it is the head that is strongest in both clips together. The basic kernels are those of the first layer.
    """
    rows = []
    for place in range(len(PLACES)):
        for i in range(len(clips[0]["R"].layers) if place == 0 else 1):
            # the sum of the squared weights of each head
            left, right = (np.nansum(clip["R"].layers[i].kernels[place] ** 2, (1, 2, 3)) for clip in clips)
            order = left - right if (place, i) == (0, 0) else -(left + right)
            heads = [order.argmax(), order.argmin()] if (place, i) == (0, 0) else [order.argmin()]
            rows += [Row(place, "V", i, int(heads[0]))] if i == 0 else []
            rows += [Row(place, "R", i, int(head)) for head in heads]
    return rows


if __name__ == "__main__":
    main()
