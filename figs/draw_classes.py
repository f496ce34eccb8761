"""Draws figs/classes.png, a video of each class of toy_something over time: ``python -m figs.draw_classes``."""

from data import toy
from figs.draw_toy import film
from figs.picture import GREY, WIDTH, import_pyplot, make_parser, save, show_strips

SEEDS = {"right": 1, "down": 2, "closer": 3, "turn": 4, "appear": 5, "apart": 6}  # by motion


def main() -> None:
    parser = make_parser("classes", __doc__)
    args = parser.parse_args()
    pyplot = import_pyplot()
    figure, panels = pyplot.subplots(len(SEEDS), 1, figsize=(WIDTH, 7.8), layout="constrained")
    for panel, (motion, seed) in zip(panels, SEEDS.items(), strict=True):
        names = pair(motion)
        show_strips(panel, names, [film(name, seed) for name in names])
        for row, note in enumerate(("a video", "the same video,\nplayed backwards")):
            panel.text(1.01, 0.75 - row / 2, note, transform=panel.transAxes, color=GREY, va="center")
    title = "toy_something: six pairs of classes that only the order of the frames tells apart"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    save(figure, args.out)


def pair(motion: str) -> list[str]:
    """The two classes of a motion, forwards and backwards."""
    found = {backwards: name for name, (own, backwards) in toy.MOTIONS.items() if own == motion}
    return [found[False], found[True]]


if __name__ == "__main__":
    main()
