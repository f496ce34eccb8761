"""The table of ``benchmarks.network --out``, and the picture that ``figs.draw_compared`` makes of it."""

import csv
import subprocess
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import quick_python
from PIL import Image
from toy_run import ROOT, run_inside

from engine.published import Row, load_published
from figs.draw_compared import chosen_row, draw, floor, label, name_of, overlap

ROWS = load_published().rows
MODELS = ("tsn_r50", "tsm_r50", "sda_tsn_r50", "sda_tsm_r50", "rsanet_r50", "c3d_r50")


def test_the_benchmark_writes_what_the_picture_draws(tmp_path):
    words = [
        "tsm_tiny",
        "rsanet_tiny",
        "--size",
        32,
        "--rounds",
        1,
        "--num_segments",
        2,
        "--clips",
        1,
        "--device",
        "cpu",
    ]
    words += ["--rsa_backends", "reference", "--out", tmp_path / "n.csv"]
    command = [quick_python.executable(), "-m", "benchmarks.network", *map(str, words)]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=250)
    assert result.returncode == 0 and "| rsanet_tiny, reference | 248,470 | 0.24 | " in result.stdout, result.stderr
    with open(tmp_path / "n.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(line["model"], line["backend"]) for line in table] == [
        ("tsn_tiny", "auto"),
        ("tsm_tiny", "auto"),
        ("rsanet_tiny", "reference"),
    ]
    for line in table:
        assert (line["num_segments"], line["size"], line["clips"], line["precision"]) == ("2", "32", "1", "fp32")
        for kind in ("training", "test"):
            ratio = float(line[f"{kind}_clips_per_second"]) / float(table[0][f"{kind}_clips_per_second"])
            assert float(line[f"{kind}_share"]) == pytest.approx(ratio, rel=2e-3)
    assert table[0]["parameters"] == "262526" and float(table[0]["multiply_adds"]) > 1e6

    result = run_inside("figs/draw_compared.py", "--measured", tmp_path / "n.csv", cwd=ROOT)
    assert result.returncode == 1 and "none of its networks has a published accuracy on something_v1" in result.stdout
    result = run_inside("figs/draw_compared.py", "--measured", tmp_path / "none.csv", cwd=ROOT)
    assert result.returncode == 1 and "write it with 'python -m benchmarks.network --out " in result.stdout

    columns = list(table[0])
    lines = [
        table[0] | {"model": model, "num_segments": 8, "multiply_adds": 1e9 * i} for i, model in enumerate(MODELS, 1)
    ]
    with open(tmp_path / "n.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)
    result = run_inside(
        "figs/draw_compared.py", "--measured", tmp_path / "n.csv", "--out", tmp_path / "n.png", cwd=ROOT
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("not drawn: c3d_r50, no Top-1 with 8 frames on something_v1 is published\n")
    with Image.open(tmp_path / "n.png") as picture:
        assert picture.width > 1200 and len(np.unique(np.asarray(picture))) > 20


def test_the_row_with_the_fewest_views_is_drawn():
    chosen = chosen_row(ROWS, "sda_tsm_r50", "something_v1", 8)
    assert (chosen.views, chosen.top1) == ("8x1x1 @224", 48.6)
    assert chosen_row(ROWS, "tin_r50", "something_v1", 8).top1 == 46.0  # 45.8 does not tell its views
    assert chosen_row(ROWS, "rsanet_r50", "something_v1", 16).top1 == 54.0
    assert chosen_row(ROWS, "v4d_r50", "something_v1", 8) is None  # its networks see 32 frames
    assert name_of(chosen_row(ROWS, "smallbig_r50", "something_v1", 8), 44) == "SmallBig, 3x2 views"
    assert name_of(chosen_row(ROWS, "tsn_r50", "something_v1", 8), 44) == "TSN: 19.7"


def test_names_overlap_neither_each_other_nor_markers():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    row = Row("s", "a system of some length", "something_v1", "tsm_r50", (8,), crops=3, clips=2, top1=50.0)
    points = [(replace(row, top1=50 + 0.05 * i), 30 + 0.1 * i) for i in range(12)] + [(replace(row, top1=20.0), 31)]
    assert floor([row for row, _ in points]) == 48.5
    figure, panel = pyplot.subplots(figsize=(7, 5), dpi=140)
    draw(panel, points)
    figure.canvas.draw()
    label(panel, points)
    boxes = [text.get_window_extent().extents for text in panel.texts]
    assert len(boxes) == 13 and not any(overlap(a, b) for a, b in combinations(boxes, 2))
    dots = [panel.transData.transform((x, max(row.top1, 48.9))) for row, x in points]
    assert not any(overlap(box, (x, y, x, y)) for box in boxes for x, y in dots)
    pyplot.close(figure)
