"""Draws figs/rsa.png, the computational graph of RSA (ops/rsa.py) with shapes: ``python -m figs.draw_rsa``."""

from figs.graph import Graph
from figs.picture import BLUE, GREEN, GREY, PURPLE, VERMILION, WIDTH, import_pyplot, make_parser, save

QUERY, KEY, VALUE, LEARNED = VERMILION, BLUE, GREEN, PURPLE


def main() -> None:
    args = make_parser("rsa", __doc__).parse_args()
    graph = Graph(import_pyplot(), 100 * WIDTH, 640)
    title = "RSA at one position: the kernel and the context both adapt to the clip"
    heads = r"$L$ = 8 heads,  $D = C\,/\,L$ channels a head"
    graph.heading(18, title, rf"$M$ = 5·7·7 = 245 neighbours (frames, height, width),  {heads}.  Purple: learned")
    draw_definition(graph)
    draw_decomposition(graph)
    save(graph.figure, args.out)


def draw_definition(graph: Graph) -> None:
    """The equations of the paper's Fig. 2, from left to right."""
    x = graph.box(66, 225, 108, 62, "feature map", "C × T × H × W")
    draw_neighbours(graph)
    query, keys, values = (
        graph.box(225, y, 120, 58, text, shape, colour)
        for y, text, shape, colour in (
            (110, "queries  $x^Q$", "L × D", QUERY),
            (225, "keys  $X^K$", "M × D", KEY),
            (340, "values  $X^V$", "M × D", VALUE),
        )
    )
    for target in (query, keys, values):
        graph.arrow(x.right, (140, x.y), (140, target.y), target.left)
    graph.text(66, 158, "1×1×1\nconvolution, then\nL2 normalisation", colour=GREY)

    basic = graph.box(440, 92, 190, 58, r"basic kernel  $\kappa^V = P\,x^Q$", "L × M", QUERY)
    formula = r"$\kappa^R = \mathrm{vec}(1\,{x^Q}^\top \odot X^K)\,H$"
    relational = graph.box(440, 190, 190, 76, f"relational kernel\n{formula}", "L × M", QUERY)
    mixed = graph.box(440, 292, 190, 76, "relational context\n" r"$X^R = X^V\,({X^V}^\top G)$", "M × D", VALUE)
    same = graph.box(440, 376, 190, 44, r"basic context  $X^V$,  M × D", "", VALUE)
    graph.arrow(query.right, (305, query.y), (305, basic.y), basic.left)
    graph.arrow(query.right, (305, query.y), (305, 178), (relational.left[0], 178))
    graph.arrow(keys.right, (320, keys.y), (320, 202), (relational.left[0], 202))
    graph.arrow(values.right, (305, values.y), (305, mixed.y), mixed.left)
    graph.arrow(values.right, (305, values.y), (305, same.y), same.left)

    for box, text in ((basic, "$P$  M × D"), (relational, "$H$  MD × M"), (mixed, "$G$  M × D")):
        graph.box(box.right[0] - 46, box.top[1] - 3, 84, 23, text, colour=LEARNED, size=9)

    kernel_sum = graph.circle(655, 141, "+", QUERY)
    context_sum = graph.circle(655, 334, "+", VALUE)
    for box, total in ((basic, kernel_sum), (relational, kernel_sum), (mixed, context_sum), (same, context_sum)):
        end = total.top if box.y < total.y else total.bottom
        graph.arrow(box.right, (655, box.y), end)
    kernel = graph.box(735, 141, 84, 52, "kernel", "L × M", QUERY)
    context = graph.box(735, 334, 84, 52, "context", "M × D", VALUE)
    graph.arrow(kernel_sum.right, kernel.left)
    graph.arrow(context_sum.right, context.left)
    product = graph.circle(735, 237, "×")
    graph.arrow(kernel.bottom, product.top)
    graph.arrow(context.top, product.bottom)
    output = graph.box(838, 237, 100, 62, "output  $y$", "L × D = C")
    graph.arrow(product.right, output.left)


def draw_neighbours(graph: Graph) -> None:
    """Five frames with a window in each. The query is in the middle of the middle frame."""
    for i in range(5):
        left, top = 12 + 22 * i, 300
        graph.rectangle(left, top, 20, 34, GREY, "white")
        graph.rectangle(left + 4, top + 10, 12, 14, KEY, "#D6E6F2")
    graph.axes.plot(66, 317, "o", color=QUERY, markersize=4, zorder=3)
    graph.text(66, 358, "a query and its\n$M$ neighbours", colour=GREY)


def draw_decomposition(graph: Graph) -> None:
    """The order of the released code, in which nothing of size M x D is stored at a position."""
    top = 430
    graph.axes.axhline(top, color="#DDDDDD", linewidth=1)
    title = "The same as the code computes it: small matrices at each position"
    reason = r"$H = H_1 H_2^\top$ and $P = H_2 P_1^\top$, therefore nothing with $M$ rows is stored at a position"
    graph.heading(top + 20, title, reason)
    parts = (
        ("$q_l$", "1 × D", QUERY, "query of head $l$"),
        (r"$P_1 + X^K \circledast H_1$", "D × D", KEY, "$H_1$: depthwise 5×7×7\nconvolution of the keys"),
        (r"$H_2^\top X^V$", "D × D", VALUE, "$H_2$: 5×7×7 convolution\nof each value channel"),
        (r"$I + {X^V}^\top G$", "D × D", VALUE, "$G$: 5×7×7 convolution\nof each value channel"),
        ("$y_l$", "1 × D", GREY, "head $l$ of\nthe output"),
    )
    y, places = top + 100, (70, 255, 450, 640, 825)
    for i, ((text, shape, colour, note), x) in enumerate(zip(parts, places, strict=True)):
        width = 90 if shape.startswith("1") else 150
        graph.box(x, y, width, 58, text, shape, colour, size=11)
        graph.text(x, y + 52, note)
        if i:
            before = places[i - 1] + (45 if i == 1 else 75)
            graph.text((before + x - width / 2) / 2, y, "=" if i == 4 else "×", 13)
    graph.text(
        450,
        top + 190,
        r"Learned:  the convolutions and the matrices  $P_1$ and $I$.  $I$ starts as the identity.",
        colour=GREY,
    )


if __name__ == "__main__":
    main()
