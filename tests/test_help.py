"""``main.py --help`` shows each recipe key with the base recipe's text and the value of the chosen recipe."""

import inspect
import re
import subprocess

import pytest
import yaml
from toy_run import run_inside

from data import toy
from engine.config import KEYS, RANGES, RECIPES, Recipe, load_recipe, to_plain
from engine.flags import recipe_texts

METAVAR = r"(?:\{\w+: \w+\}|\[INT, \.\.\.\]|\S+)"


@pytest.fixture(autouse=True)
def lines_that_do_not_wrap(monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A copy of the recipes' folder that the programs read."""
    copy = tmp_path / "recipes"
    copy.mkdir()
    for path in RECIPES.glob("*.yaml"):
        (copy / path.name).write_text(path.read_text())
    monkeypatch.setattr("engine.config.RECIPES", copy)
    return copy


def help_of(folder, *words: object) -> subprocess.CompletedProcess:
    result = run_inside("main.py", *words, "--help", cwd=folder)
    assert result.returncode == 0, result.stdout
    return result


def default(help_text: str, key: str) -> str:
    return re.search(rf"--{key} {METAVAR}\s+.*\(default (.*)\)$", help_text, re.MULTILINE)[1]


def test_every_recipe_key_has_a_text_under_the_heading_that_the_class_has():
    in_class, heading = [], ""
    for line in inspect.getsource(Recipe).splitlines():
        if line.startswith("    # "):
            heading = line[6:]
        elif re.match(r"    \w+: ", line):
            in_class.append((line.split(":")[0].strip(), heading))
    assert [key for key, _ in in_class] == list(KEYS)
    texts = recipe_texts()
    assert [(key, heading) for key, (heading, _) in texts.items()] == in_class
    assert all(len(text) > 10 for _, text in texts.values())


@pytest.mark.parametrize("words", [(), ("something_v1", "rsanet_r50"), ("ucf101", "tsm_r50")])
def test_help_shows_the_heading_the_text_and_the_value_of_every_key(words, tmp_path):
    dataset, model = words or ("", "tsn_r50")
    values = to_plain(load_recipe(model, dataset))
    shown = " ".join(help_of(tmp_path, *words).stdout.split())
    done, last_heading = 0, ""
    for key, (heading, text) in recipe_texts().items():
        value = "none" if values[key] is None else str(values[key]).removesuffix(".0")
        value = value.lower() if isinstance(values[key], bool) else value
        if isinstance(values[key], dict):  # as YAML writes it in one line
            value = yaml.safe_dump(values[key], default_flow_style=True, sort_keys=False).strip().replace(".0", "")
        before = f"{heading}: " if heading != last_heading else ""
        text += f"; {RANGES[key]}" if key in RANGES else ""
        line = rf"{before}--{key} {METAVAR} {re.escape(text)} \(default {re.escape(value)}\)"
        found = re.compile(line).search(shown, done)
        assert found, line
        done, last_heading = found.end(), heading


def test_defaults_are_those_of_the_dataset_the_model_and_the_variant(tmp_path):
    v1, v2 = (help_of(tmp_path, f"something_v{n}", "rsanet_r50").stdout for n in (1, 2))
    assert (default(v1, "dropout"), default(v2, "dropout")) == ("0.5", "0.3")
    assert (default(v1, "eval_every"), default(v2, "eval_every")) == ("1", "5")
    assert (default(v1, "epochs"), default(v1, "train_resize")) == ("80", "240x320")
    script = help_of(tmp_path, "something_v1", "rsanet_r50", "--variant", "script_v1").stdout
    assert (default(script, "epochs"), default(script, "dropout")) == ("50", "0.3")


def test_help_names_the_recipe_its_file_its_variants_and_the_way_to_another(tmp_path):
    base = help_of(tmp_path).stdout
    assert "those of tsn_r50 (all recipes start from it) without a dataset, from models/recipes/tsn_r50.yaml." in base
    assert "See another recipe with: python main.py DATASET MODEL [--variant V] --help" in base
    chosen = help_of(tmp_path, "something_v1", "rsanet_r50", "--variant", "script_v1").stdout
    assert "rsanet_r50 for something_v1, variant script_v1, from models/recipes/rsanet_r50.yaml." in chosen
    assert "Its variants: script_v1, intended_multipliers." in chosen
    assert "Its variants" not in base


def test_a_dataset_may_be_the_path_of_its_file(tmp_path):
    values = {"name": "something_v1", "num_classes": 2, "root": "r", "train_list": "t.txt", "val_list": "v.txt"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values | {"image_tmpl": "{:05d}.jpg"}))
    shown = help_of(tmp_path, "own.yaml", "rsanet_r50").stdout
    assert default(shown, "dropout") == "0.5" and "those of rsanet_r50 for something_v1," in shown


def test_a_recipe_that_cannot_be_read_is_said_and_the_base_is_shown(tmp_path):
    (tmp_path / "broken.yaml").write_text("[")
    for words, problem, instead in [
        (("something", "rsanet_r50"), "no dataset 'something'; did you mean", "rsanet_r50 without a dataset,"),
        (("broken.yaml", "rsanet_r50"), "broken.yaml:1: not a YAML file", "rsanet_r50 without a dataset,"),
        (("something_v1", "rsanet"), "no recipe 'rsanet'", "tsn_r50 (all recipes start from it) for something_v1,"),
        (("ucf101", "rsanet_r50", "--variant", "x"), "rsanet_r50.yaml: no variant 'x'; known: ", "tsn_r50 (all"),
    ]:
        shown = help_of(tmp_path, *words).stdout
        assert f"The recipe asked for cannot be shown: {problem}" in shown
        assert f"The defaults above are those of {instead}" in shown


def test_the_words_of_the_help_are_those_of_the_recipe_file(recipes):
    file = recipes / "tsn_r50.yaml"
    content = file.read_text()
    for old, new in [
        ("# --- network", "# --- a new heading"),
        ("dropout: 0.5 # probability, before the classifier", "dropout: 0.25 # 100 % # new words"),
        ('main.py (something, 8 segments)" #', '# main.py (something)" #'),
    ]:
        assert content.count(old) == 1
        content = content.replace(old, new)
    file.write_text(content)
    shown = help_of(recipes).stdout
    assert re.search(r"^a new heading:$", shown, re.MULTILINE) and "\nnetwork:" not in shown
    assert re.search(
        r"--dropout FLOAT +100 % # new words; at least 0 and below 1 \(default 0\.25\)$", shown, re.MULTILINE
    )
    assert default(shown, "source") == "TSM repository, README and # main.py (something)"


def test_a_key_without_a_text_keeps_its_flag(recipes):
    file = recipes / "tsn_r50.yaml"
    file.write_text(file.read_text().replace(" # probability, before the classifier", ""))
    assert default(help_of(recipes).stdout, "dropout") == "0.5"


@pytest.mark.parametrize("content", ["[", "- a list", "lr: 1\n", None])
def test_a_base_recipe_that_cannot_be_used_is_one_line(recipes, content):
    file = recipes / "tsn_r50.yaml"
    file.unlink() if content is None else file.write_text(content)
    result = run_inside("main.py", "--help", cwd=recipes)
    usage, blank_or_error = result.stdout.splitlines()
    assert result.returncode == 2 and usage.startswith("usage: main.py DATASET MODEL")
    assert blank_or_error.startswith("main.py: error: ") and "tsn_r50" in blank_or_error


def test_help_draws_no_toy_set(tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "draw_once", lambda *_: pytest.fail("drawn"))
    assert default(help_of(tmp_path, "toy_something", "tsn_tiny").stdout, "input_size") == "48"


def test_help_fits_into_80_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert all(len(line) <= 80 for line in help_of(tmp_path, "something_v1", "rsanet_r50").stdout.splitlines())


def test_no_flag_of_main_is_without_a_text(tmp_path):
    lines = help_of(tmp_path).stdout.splitlines()
    flags = [i for i, line in enumerate(lines) if line.startswith("  -")]
    assert len(flags) > len(KEYS) + 8
    for i in flags:
        described = re.search(r"\S {2,}\S", lines[i]) or lines[i + 1].startswith(" " * 20)
        assert described, lines[i]
