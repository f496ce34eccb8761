"""``scripts.published``: the rows it prints, the commands below them, and the costs it measures and stores."""

import csv
import re
from dataclasses import replace

import pytest
import torch
from toy_run import ROOT, run_inside

from data import load_dataset_config
from engine.config import ConfigError, load_recipe
from engine.protocols import choose_views
from engine.published import Row, load_published
from models import build_model
from models.costs import costs
from scripts import published as program

ROWS = load_published().rows


def test_each_command_is_understood():
    """A recipe exists, the protocol takes these views, and the network is built with these frames."""
    known = [row for row in ROWS if row.model]
    elsewhere = [row for row in ROWS if row.model is None]
    assert len(known) > 50 and not any(program.train_commands(r) + program.testing_commands(r) for r in elsewhere)
    for row in known:
        for command, frames in zip(program.train_commands(row), row.num_segments or [None], strict=True):
            start = f"python main.py {row.dataset} {row.model} --run "
            assert command.startswith(start) and command.endswith(
                f" --num_segments {frames}" if frames else row.dataset
            )
            recipe = load_recipe(row.model, row.dataset, **({"num_segments": frames} if frames else {}))
        (command,) = program.testing_commands(row)
        files = re.search(r"--weights (\S+)", command)[1].split(",")
        assert files == [f"net_runs/{c.split()[5]}/resnet_rgb_model_best.pth.tar" for c in program.train_commands(row)]
        words = command.split()[5:]
        given = dict(zip((word.strip("-") for word in words[::2]), words[1::2], strict=True))
        assert set(given) <= {"protocol", "views"} and ("views" in given) == bool(row.crops and row.clips)
        views = choose_views(recipe, given.get("protocol"), views=given.get("views"))
        assert "views" not in given or (row.crops, row.clips) == (views.crops, views.clips)


def test_stored_costs_are_those_of_models_costs():
    """All parameters, and the multiply-adds of the network that is counted fastest."""
    stored = program.read_costs()
    wanted = {network for row in ROWS for network in program.networks(row)}
    assert wanted and not wanted - set(stored), "measure them: python -m scripts.published --measure"
    for (model, classes, frames, _), (parameters, _) in stored.items():
        with torch.device("meta"):
            network = build_model(model, classes, frames)
        assert sum(p.numel() for p in network.parameters()) == parameters, (model, classes, frames)
    assert costs(build_model("tsn_r50", 174, 8), 8, 224) == stored["tsn_r50", 174, 8, 224]
    assert {load_dataset_config(row.dataset).num_classes for row in ROWS if row.model} >= {174, 48}


def run_program(*words: object) -> tuple[int, str]:
    result = run_inside("scripts/published.py", *words, cwd=ROOT)
    assert "Traceback" not in result.stdout
    return result.returncode, result.stdout


def test_the_program_prints_rows_costs_notes_and_commands(tmp_path):
    code, text = run_program("rsanet_r50", "--dataset", "something_v1")
    assert code == 0 and text.count("\nsomething_v1\n") == 1 and "something_v2" not in text
    assert re.search(
        r"\n2 +RSANet +rsanet_r50 +16x1x1 @224 +rsa +22.034 +22.034 +71.774 +72.13 +53.986 +81.137 +49.71 ", text
    )
    assert re.search(r"\nnotes\n.*  2: The multiply-adds are without batch norm.*\ntrain\n.*\ntest\n", text, re.S)
    train = "python main.py something_v1 rsanet_r50 --run rsanet_r50_something_v1_16 --num_segments 16\n"
    weights = "net_runs/rsanet_r50_something_v1_16/resnet_rgb_model_best.pth.tar"
    assert f"\n  1, 2, 4, 5, 6: {train}" in text
    test = f"python test_models.py something_v1 --weights {weights} --protocol rsa --views 1x1\n"
    assert f"\n  1, 2, 6: {test}" in text


def test_the_program_prints_systems_that_are_not_here():
    code, text = run_program("--dataset", "diving48")
    assert code == 0 and re.search(r"\n +\d+ +TimeSformer-L +\?x\?x\? @\? +81.0 ", text.replace("\n", "\n ")), text
    assert re.search(r"\n  (\d+, )+\d+: None of our networks.\n", text) and "c3d_r50_diving48_8" in text
    everything = run_program()[1]
    assert all(f"\n{row.dataset}\n" in everything and row.system in everything for row in ROWS)
    assert "24.3M and 33.0G are those of a bare ResNet-50" in everything


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tsm_r5"], "unknown model 'tsm_r5'; did you mean tsm_r50?"),
        (["tanet_r5"], "unknown model 'tanet_r5'; did you mean tanet_r50?"),
        (["--dataset", "diving"], "unknown dataset 'diving'; did you mean diving48?"),
        (["tsm_tiny"], "no results of tsm_tiny are published here; leave MODEL and --dataset out"),
        (
            ["tea_r50", "--dataset", "ucf101"],
            "no results of tea_r50 on ucf101 are published here; it has some on somet",
        ),
        (["--out", "/proc/no/rows.csv"], "/proc/no: cannot be written"),
    ],
)
def test_what_the_program_cannot_do_is_one_line(words, message):
    code, text = run_program(*words)
    assert code == 1 and text.strip().splitlines()[-1].startswith(f"error: {message}"), text


def test_the_program_writes_and_measures_tables(tmp_path, monkeypatch):
    """A measurement replaces the rows of its networks and keeps the others."""
    assert run_program("sda_tsm_r50", "--dataset", "something_v2", "--out", tmp_path / "rows.csv")[0] == 0
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 and {row["our_multiply_adds"] for row in rows} == {
        "33923912480",
        "67847824960",
        "101771737440",
    }
    assert rows[-1] | {"frames": "16+8", "top1": "67.3", "protocol": "sda_full+sda", "note": ""} == rows[-1] | {
        "note": ""
    }

    monkeypatch.setattr(program, "COSTS", tmp_path / "costs.csv")
    monkeypatch.setattr(program, "build_model", lambda *network: network)
    monkeypatch.setattr(program, "costs", lambda network, frames, size: (network[1], 10.0 * frames + size))
    row = Row("s", "X", "diving48", "tsm_r50", (8, 16), top1=1.0)
    program.measure([row, replace(row, model=None)])
    program.measure([replace(row, frames=(8,), dataset="something_v1", input=256)])
    stored = program.read_costs()
    assert stored == {
        ("tsm_r50", 48, 8, 224): (48, 304),
        ("tsm_r50", 48, 16, 224): (48, 384),
        ("tsm_r50", 174, 8, 256): (174, 336),
    }
    assert program.our_costs(row, stored) == (96, 688)
    assert program.our_costs(replace(row, frames=(8, 32)), stored) is None
    (tmp_path / "costs.csv").write_text("model\ntsm_r50,x\n")
    with pytest.raises(ConfigError, match="cannot be read .* write it with --measure"):
        program.read_costs()
