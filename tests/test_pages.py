"""What README and docs say is what logs, recipes and published rows say, and their links lead somewhere."""

import re

import pytest
from toy_run import ROOT

from engine.config import load_recipe
from engine.log_reader import read_log
from engine.published import load_published
from scripts.published import our_costs, read_costs

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_toy_column_is_what_the_logs_say():
    """SmallBig is blind to the direction of time, and TSN to any order."""
    rows = re.findall(r"^\| ([\w, ]+) \| .* \| (\d[\d., ]+) \|$", text_of("docs/networks.md"), re.M)
    found = {}
    for names, shown in rows:
        found |= dict(zip(names.split(", "), shown.split(", "), strict=True))
    logs = {path.stem.removeprefix("toy_"): path for path in (ROOT / "logs").glob("toy_*.log")}
    assert {name.replace("_r50", "_tiny") for name in found} == set(logs)
    for name, top1 in found.items():
        model = name.replace("_r50", "_tiny")
        last = read_log(logs[model])[-1]
        assert top1 == f"{last['val_top1']:.2f}"
        assert last["val_top1"] < 60 if model in ("tsn_tiny", "smallbig_tiny") else last["val_top1"] >= 95


def test_results_are_those_of_the_published_rows_and_our_costs():
    """Each row of README's table of results, by network, views and protocol."""
    rows, costs = load_published().rows, read_costs()
    table = [
        line.strip("| ").split(" | ")
        for line in text_of("README.md").splitlines()
        if re.match(r"\| `\w+` \| \d+x", line)
    ]
    assert len(table) >= 6
    for network, views, *shown, parameters, cost, protocol, _ in table:
        frames, crops, clips = map(int, views.split("x"))
        for dataset, text in zip(("something_v1", "something_v2"), shown, strict=True):
            same = [
                row
                for row in rows
                if (row.model, row.dataset, *row.frames, row.crops, row.clips)
                == (network.strip("`"), dataset, frames, crops, clips)
                and protocol.strip("`") in row.protocol
            ]
            top1, _, top5 = text.partition(" / ")
            assert float(top1) in [row.top1 for row in same], (network, views, dataset)
            assert not top5 or float(top5) in [row.top5 for row in same]
            millions, billions = (
                number / unit for number, unit in zip(our_costs(same[0], costs), (1e6, 1e9), strict=True)
            )
            assert (parameters, cost) == (f"{millions:.3f} M", f"{billions:.2f} G")


def test_recipe_table_is_what_the_recipes_say():
    lines = text_of("docs/recipes.md").splitlines()
    table = {cells[0]: cells[1:] for line in lines if len(cells := line.strip("| ").split(" | ")) == 5}
    columns = ("something_v1", "tsm_r50"), ("something_v1", "sda_tsm_r50"), ("something_v1", "rsanet_r50")
    recipes = [load_recipe(model, dataset) for dataset, model in (*columns, ("something_v2", "rsanet_r50"))]
    keys = {
        "epochs": "epochs",
        "learning rate": "lr",
        "global batch": "global_batch_size",
        "weight decay": "weight_decay",
        "dropout": "dropout",
        "label smoothing": "label_smoothing",
        "stochastic depth": "stochastic_depth",
        "clip gradient": "clip_gradient",
    }
    for name, key in keys.items():
        assert [float(cell) for cell in table[name]] == [getattr(recipe, key) for recipe in recipes], name
    flips = {"none": "none", "left and right exchange labels": "swap", "all but left and right": "skip"}
    assert [flips[cell] for cell in table["flip"]] == [recipe.flip for recipe in recipes]


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    """The tests, scripts and recipes that a page names in code."""
    text = text_of(page)
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name
    folders = "ops|models|engine|scripts|tests|figs|benchmarks|docs"  # what is below a folder of data/ is not committed
    for name in re.findall(rf"`((?:(?:{folders})/[\w/]+|data/\w+)\.\w+)`", text):
        assert (ROOT / name).exists(), name


def test_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 200
