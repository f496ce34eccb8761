"""Boxes and arrows of a computational graph. Coordinates are hundredths of an inch from the upper left corner."""

from typing import NamedTuple

from figs.picture import GREY

UNIT = 100  # of an inch; a pixel if README shows the picture 900 px wide


class Box(NamedTuple):
    """The place of a box: its centre, width and height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> tuple[float, float]:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> tuple[float, float]:
        return self.x, self.y - self.height / 2

    @property
    def bottom(self) -> tuple[float, float]:
        return self.x, self.y + self.height / 2


class Graph:
    """A picture of ``width`` x ``height`` hundredths of an inch."""

    def __init__(self, pyplot, width: float, height: float):
        self.figure = pyplot.figure(figsize=(width / UNIT, height / UNIT))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def box(
        self, x: float, y: float, width: float, height: float, text: str, shape: str = "", colour: str = GREY, size=10
    ) -> Box:
        """A box with its text and, below it and smaller, the shape of what it holds."""
        from matplotlib.patches import FancyBboxPatch

        place = (x - width / 2, y - height / 2)
        style = {"boxstyle": "round,pad=0,rounding_size=6", "linewidth": 1.3, "zorder": 2}
        face = (*_rgb(colour), 0.13)
        self.axes.add_patch(FancyBboxPatch(place, width, height, facecolor="white", edgecolor="none", **style))
        self.axes.add_patch(FancyBboxPatch(place, width, height, facecolor=face, edgecolor=colour, **style))
        if shape:
            lines = text.count("\n") + 1
            middle = y - 8
            self.text(x, middle, text, size=size)
            self.text(x, middle + 7.5 + 8.5 * lines, shape, size=9, colour=GREY)
        else:
            self.text(x, y, text, size=size)
        return Box(x, y, width, height)

    def heading(self, y: float, title: str, below: str) -> None:
        """A title at the left edge, and a smaller line below it."""
        self.text(12, y, title, size=12, ha="left")
        self.text(12, y + 21, below, colour=GREY, ha="left")

    def rectangle(self, left: float, top: float, width: float, height: float, colour: str, face: str) -> None:
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle((left, top), width, height, facecolor=face, edgecolor=colour, zorder=2))

    def text(self, x: float, y: float, text: str, size: float = 9, colour: str = "black", **settings) -> None:
        settings = {"ha": "center", "va": "center", "linespacing": 1.25, "zorder": 3} | settings
        self.axes.text(x, y, text, fontsize=size, color=colour, **settings)

    def arrow(self, *points: tuple[float, float]) -> None:
        """An arrow through the points, with its head at the last one."""
        xs, ys = zip(*points, strict=True)
        self.axes.plot(xs, ys, color=GREY, linewidth=1.3, zorder=1, solid_joinstyle="round")
        head = {"arrowstyle": "-|>,head_width=0.22,head_length=0.45", "color": GREY, "linewidth": 1.3}
        head |= {"shrinkA": 0, "shrinkB": 0}
        before, (x, y) = points[-2], points[-1]
        length = max(abs(x - before[0]), abs(y - before[1]))
        start = tuple(end - (end - old) * min(1, 12 / length) for old, end in zip(before, (x, y), strict=True))
        self.axes.annotate("", (x, y), start, arrowprops=head, zorder=1)

    def circle(self, x: float, y: float, sign: str, colour: str = GREY) -> Box:
        """An operation with two inputs, such as a sum."""
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), 11, facecolor="white", edgecolor=colour, linewidth=1.3, zorder=2))
        self.text(x, y, sign, size=11)
        return Box(x, y, 22, 22)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
