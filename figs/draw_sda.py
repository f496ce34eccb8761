"""Draws figs/sda.png, the module SDA (ops/sda.py) with shapes: ``python -m figs.draw_sda``."""

from typing import NamedTuple

from figs.graph import Box, Graph
from figs.picture import BLUE, GREEN, GREY, PURPLE, VERMILION, WIDTH, YELLOW, import_pyplot, make_parser, save


class Branch(NamedTuple):
    name: str
    reach: str
    squeeze: str
    squeezed: str  # shape
    operator: str
    after: str
    summary: str  # shape
    colour: str


BRANCHES = (
    Branch("LST", "long range, space and time", "mean over T, H, W", "c", "linear", "BN, ReLU", "c×1×1×1", VERMILION),
    Branch("LT", "long range, time", "mean over T", "c × H × W", "3×3 convolution", "BN, ReLU", "c×1×H×W", BLUE),
    Branch("LS", "long range, space", "mean over H, W", "c × T", "3-frame convolution", "BN, ReLU", "c×T×1×1", GREEN),
    Branch(
        "S122",
        "short range",
        "1×2×2 pool",
        "c × T × H/2 × W/2",
        "3×1×1 convolution",
        "BN, ReLU, resize",
        "c×T×H×W",
        YELLOW,
    ),
)


def main() -> None:
    args = make_parser("sda", __doc__).parse_args()
    graph = Graph(import_pyplot(), 100 * WIDTH, 475)
    title = "SDA: four ranges of space and time, weighted for each clip, gate the feature map"
    shapes = "shapes of one clip: C channels, T frames, H × W positions;  c = max(C/4, 16) channels inside SDA"
    graph.heading(18, title, shapes)
    middle = 232
    y = graph.box(58, middle, 100, 70, "$Y$", "C × T × H × W", size=13)
    graph.text(58, middle - 48, "after conv2, BN", colour=GREY)
    down = graph.box(168, middle, 84, 86, "1×1×1\nC → c", "BN, ReLU", PURPLE)
    graph.arrow(y.right, down.left)
    aggregation = graph.box(671, middle, 120, 336, "", "")
    for i, branch in enumerate(BRANCHES):
        draw_branch(graph, down, aggregation, 100 + 88 * i, i, branch)
    graph.text(671, 90, "query\naggregation", 10)
    graph.text(671, 158, r"$\alpha_m = \mathrm{softmax}_m$" "\n" r"$(\overline{R}_m\, q^\top)$", 11)
    graph.text(671, 215, r"$\overline{R}_m$: mean of $R_m$" "\n$q$: learned query", 9, GREY)
    graph.text(671, 290, r"$R = \sum_m \alpha_m R_m$", 11)
    graph.text(671, 325, "c × T × H × W", 9, GREY)
    up = graph.box(798, middle, 88, 86, "1×1×1\nc → C", "BN, sigmoid", PURPLE)
    graph.arrow(aggregation.right, up.left)
    product = graph.circle(798, 430, "⊙")
    graph.arrow(up.bottom, product.top)
    graph.text(808, 345, "gate, 0 to 1\nC×T×H×W", ha="left", colour=GREY)
    graph.arrow(y.bottom, (y.x, 430), product.left)
    output = graph.box(862, 430, 54, 44, "$Z$", size=13)
    graph.arrow(product.right, output.left)
    graph.text(420, 450, "$Z = Y \\odot$ gate, in the same shape as $Y$", colour=GREY)
    save(graph.figure, args.out)


def draw_branch(graph: Graph, down: Box, aggregation: Box, y: float, i: int, branch: Branch) -> None:
    """A branch: its squeeze, its operator, and the arrow of its summary, which the aggregation broadcasts."""
    graph.text(242, y - 31, branch.name, 10, ha="left", weight="bold")
    graph.text(286, y - 31, branch.reach, 9, GREY, ha="left")
    first = graph.box(304, y, 124, 44, branch.squeeze, branch.squeezed, branch.colour, size=9)
    second = graph.box(450, y, 136, 44, branch.operator, branch.after, branch.colour, size=9)
    graph.arrow(down.right, (226, down.y), (226, y), first.left)
    graph.arrow(first.right, second.left)
    graph.arrow(second.right, (aggregation.left[0], y))
    graph.text(564, y - 12, f"$R_{i + 1}$", 10)
    graph.text(564, y + 13, branch.summary, 9, GREY)


if __name__ == "__main__":
    main()
