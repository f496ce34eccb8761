"""Rules of this repository: imports run one way, files are short, nothing is written twice, recipes are complete."""

import ast
import sys
from pathlib import Path

import pytest
import yaml

from data import list_datasets, load_dataset_config
from engine.config import RECIPES, ConfigError, coerce, load_recipe, parse_size, parse_views, to_plain
from engine.schedule import learning_rate
from models import list_models

ROOT = Path(__file__).parents[1]
ROOMS = ("ops", "models", "data", "reports", "engine", "scripts", "figs", "tests", "benchmarks")
OURS = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".sh", ".yaml")]
OURS += [path for path in ROOT.iterdir() if path.suffix in (".py", ".yml", ".md", ".toml")]

# room -> rooms that it may import
MAY_IMPORT = {
    "ops": set(),
    "models": {"ops"},
    "data": set(),
    "reports": set(),
    "engine": {"models", "ops", "data", "reports"},
    "scripts": {"engine", "models", "data", "ops", "reports"},
    "benchmarks": {"engine", "models", "data", "ops", "reports"},
    "figs": {"scripts", "engine", "models", "data", "ops", "reports"},
}


def test_imports_run_one_way():
    rooms = {*MAY_IMPORT, "main", "test_models"}
    for room, allowed in MAY_IMPORT.items():
        files = list((ROOT / room).glob("*.py"))
        assert files
        for path in files:
            for other in imported(path) & rooms - {room}:
                assert other in allowed, f"{path} imports {other}"


def test_operators_need_torch_alone():
    """Each file can be copied into other code. RSA's fused and Triton paths are two files each; one needs triton."""
    allowed = {"torch", *sys.stdlib_module_names}
    more = {"rsa_fused.py": {"."}, "rsa_triton.py": {"."}, "rsa_triton_kernels.py": {"triton"}}
    for path in (ROOT / "ops").glob("*.py"):
        if path.name != "__init__.py":
            assert imported(path) <= allowed | more.get(path.name, set()), path


def imported(path: Path) -> set[str]:
    """The top-level names that a file imports. Its own package is "."."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.add("." if node.level else node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names


def test_no_test_module_imports_another():
    """Tests share helper modules. A test file that is edited or moved then breaks no other."""
    for path in (ROOT / "tests").glob("*.py"):
        assert not {name for name in imported(path) if name.startswith("test_")}, path


def test_private_names_stay_in_their_file():
    """A name that begins with an underscore is nobody else's. (torch's own private classes have no public name.)"""
    for path in (path for room in MAY_IMPORT for path in (ROOT / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] in MAY_IMPORT):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{path} imports {private}"


def test_no_function_or_class_is_written_twice():
    """All bodies of at least four statements differ. Names and docstrings do not count."""
    found: dict[str, str] = {}
    for path in (path for room in MAY_IMPORT for path in sorted((ROOT / room).glob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                body = node.body[ast.get_docstring(node) is not None :]
                if sum(isinstance(part, ast.stmt) for line in body for part in ast.walk(line)) >= 4:
                    place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                    first = found.setdefault("".join(map(ast.dump, body)), place)
                    assert first == place, f"{place} is {first} again; keep one of them"


def test_no_file_is_long():
    for path in OURS:
        assert len(path.read_text().splitlines()) <= 400, path
    assert not any(path.name == "utils.py" for path in OURS)


def test_one_list_of_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-r requirements.txt"]}]
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()
    for file in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if not line.startswith(("#", "-r ")):
                assert line.count(">=") == 1 and "<" not in line and "==" not in line, line


@pytest.mark.parametrize("model", list_models())
def test_every_model_has_a_recipe_for_every_dataset(model):
    for dataset in list_datasets():
        recipe = load_recipe(model, dataset)
        assert load_recipe(model, dataset, **to_plain(recipe)) == recipe  # in the form of a run's config.yaml


def test_recipes_that_nobody_published_say_so():
    """Recipes are published for all networks on Something-Something, and for TSN and TSM on Kinetics and UCF101."""
    families = ("tsn", "tsm", "sda_tsn", "sda_tsm", "rsanet")
    published = {(family, f"something_v{version}") for family in families for version in (1, 2)}
    published |= {(family, dataset) for family in ("tsn", "tsm") for dataset in ("kinetics400", "ucf101")}
    for dataset in set(list_datasets()) - {"toy_something"}:
        for family in families:
            source = load_recipe(f"{family}_r50", dataset).source
            admits = "nobody published" in source or "not published" in source or "recipe not" in source
            assert admits == ((family, dataset) not in published), f"{family}_r50 on {dataset}: {source}"


def test_a_dataset_changes_what_a_recipe_builds_on_but_not_what_it_says():
    """TSM's recipe for UCF101 changes only the keys of SDA that SDA's own recipe does not set."""
    tsm, sda, rsa = (load_recipe(f"{name}_r50", "ucf101") for name in ("tsm", "sda_tsm", "rsanet"))
    assert (tsm.epochs, tsm.lr, tsm.lr_steps, tsm.dropout, tsm.partial_bn) == (25, 0.001, [10, 20], 0.8, True)
    assert (sda.epochs, sda.lr, sda.dropout, sda.global_batch_size, sda.flip) == (50, 0.01, 0.5, 36, "swap")
    assert (rsa.epochs, rsa.lr, rsa.dropout, rsa.partial_bn) == (80, 0.02, 0.3, False)
    assert load_recipe("tsm_r50", "diving48").flip == "skip" and load_recipe("tsm_r50", "something_v1").flip == "none"
    kinetics = load_recipe("tsm_r50", "kinetics400")
    assert (kinetics.lr, kinetics.global_batch_size, kinetics.weight_decay) == (0.02, 128, 1e-4)


def test_class_counts():
    counts = {name: load_dataset_config(name).num_classes for name in list_datasets() if name != "toy_something"}
    assert counts == {
        "something_v1": 174,
        "something_v2": 174,
        "diving48": 48,
        "epic_kitchens_55_verb": 125,
        "epic_kitchens_55_noun": 352,
        "finegym99": 99,
        "finegym288": 288,
        "kinetics400": 400,
        "ucf101": 101,
        "hmdb51": 51,
    }


def test_published_recipes():
    """The settings of the released code and logs, and the variant for settings in which code and logs differ."""
    v1, v2 = load_recipe("rsanet_r50", "something_v1"), load_recipe("rsanet_r50", "something_v2")
    script = load_recipe("rsanet_r50", "something_v1", "script_v1")
    assert (v1.epochs, v1.dropout, v1.eval_every, v1.eval_last) == (80, 0.5, 1, 10)
    assert (v2.epochs, v2.dropout, v2.eval_every, v2.eval_last) == (80, 0.3, 5, 10)
    assert (script.epochs, script.dropout) == (50, 0.3)
    assert load_recipe("rsanet_r50", "something_v1", "intended_multipliers").lr_multipliers
    for r in (v1, v2, script):
        assert (r.lr, r.weight_decay, r.clip_gradient, r.label_smoothing, r.momentum) == (0.02, 5e-4, 100, 0.1, 0.9)
        assert r.nesterov and not r.lr_multipliers and r.stochastic_depth == 0.2 and r.global_batch_size == 64
        assert (r.flip, r.train_resize, r.val_resize) == ("skip", (240, 320), (240, 320))
        assert (r.val_crop, r.input_size) == (224, 224)
        assert r.val_short_videos == r.test_short_videos == "first_frame"
    logged = [0.00402, 0.00801, 0.01201, 0.01600, 0.02000, 0.01999]
    assert [round(learning_rate(v1, epoch), 5) for epoch in (0, 1, 2, 3, 4, 5)] == logged
    assert [f"{learning_rate(v1, epoch):.5f}" for epoch in (40, 78, 79)] == ["0.01064", "0.00003", "0.00002"]
    factors = {"fc": 1, "fc_bias": 2, "sda": 5}
    for name in ("sda_tsn_r50", "sda_tsm_r50"):
        r = load_recipe(name, "something_v1")
        assert (r.lr, r.lr_steps, r.epochs, r.global_batch_size, r.dropout) == (0.01, [20, 40], 50, 36, 0.5)
        assert (r.weight_decay, r.clip_gradient, r.label_smoothing, r.nesterov) == (1e-4, 20, 0, False)
        assert (r.flip, r.train_resize, r.lr_mults, r.lr_multipliers) == ("swap", None, factors, True)
        assert (r.val_resize, r.val_crop) == (256, 224)
        assert (r.val_short_videos, r.test_short_videos) == ("first_frame", "spread")
        assert (r.test_resize, r.test_crop, r.input_size) == (256, 256, 224)


def test_recipe_values_are_checked():
    assert coerce("lr", "1e-3") == 0.001 and coerce("lr_steps", "[3, 5]") == [3, 5]
    assert [coerce("save_every", text) for text in ("500", "2.50m", "none")] == [500, "2.5m", None]
    assert coerce("pretrained", "none") is None and coerce("nesterov", "true") is True
    assert parse_size("240x320") == (240, 320) and parse_size("256") == 256 and parse_size("none") is None
    assert parse_views("10x2") == (10, 2)
    wrong = {"lr": True, "epochs": "1.5", "nesterov": "1", "train_resize": "ax2", "test_views": "3"}
    wrong |= {"train_resize": "1x1", "val_resize": 7}  # a training crop of so small a frame may be empty
    wrong |= {"precision": "int8", "modality": "rgb", "frozen_stages": 5, "save_every": "0m", "data_length": 0}
    wrong |= {
        "lr_mults": "[",
        "workers": -1,
        "lr": "nan",
        "momentum": 2,
        "clip_gradient": -1,
        "val_resize": 12.7,
        "lr_steps": [1.5],
    }
    for key, value in wrong.items():
        with pytest.raises(ConfigError):
            coerce(key, value)
    with pytest.raises(ConfigError, match="unknown recipe key 'weightdecay'; did you mean weight_decay"):
        coerce("weightdecay", 1)


def test_recipe_files_are_checked(tmp_path, monkeypatch):
    (tmp_path / "tsn_r50.yaml").write_text((RECIPES / "tsn_r50.yaml").read_text())
    (tmp_path / "bad.yaml").write_text("base: tsn_r50\nnestrov: true\n")
    monkeypatch.setattr("engine.config.RECIPES", tmp_path)
    with pytest.raises(ConfigError, match="bad.yaml: unknown recipe key 'nestrov'; did you mean nesterov"):
        load_recipe("bad", "toy_something")
    with pytest.raises(ConfigError, match="no recipe 'none' in models/recipes"):
        load_recipe("none", "toy_something")
    for text, message in [
        ("[", "not a YAML file"),
        ("", "must hold 'key: value' lines"),
        ("datasets:", "must hold 'key: value' lines"),
        ("variants: {x: 1}", "must hold 'key: value' lines"),
        ("base: bad", "names itself as its base"),
        ("lr: 1", "lacks the key"),
    ]:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_recipe("bad", "toy_something")
