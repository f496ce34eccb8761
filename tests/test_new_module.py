"""A user adds a temporal module with an operator, a family, a recipe and one registration. No project file changes.

The files are in a temporary folder, as they would be in a user's own project.
"""

import importlib
import sys

import numpy as np
import pytest
import torch
from torchvision.models import resnet50
from toy_run import NAMES, make_dataset, quick_flags, run

from engine.config import ConfigError, load_recipe
from engine.network import build_for_training
from engine.optim import build_optimizer, parameter_groups
from models import WeightsError, build_model, families, list_models, load_weights
from models.costs import costs
from models.export import export_program
from models.weights import released_model, released_segments

OPERATOR = '''
"""Temporal gate: a depthwise convolution over time gates the features."""
import torch
from torch import nn


class TemporalGate(nn.Module):
    """(N*T, C, H, W) -> the same."""

    optim_group = "gate"
    optim_params = {"scale": "weight", "shift": "offset"}

    def __init__(self, channels, num_segments, taps=3):
        super().__init__()
        self.num_segments = num_segments
        self.conv = nn.Conv1d(channels, channels, taps, padding=taps // 2, groups=channels)
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        pooled = x.mean((2, 3)).unflatten(0, (-1, self.num_segments)).transpose(1, 2)  # (N, C, T)
        gate = (self.conv(pooled) * self.scale + self.shift).sigmoid().transpose(1, 2).flatten(0, 1)  # (N*T, C)
        return x * gate[:, :, None, None]
'''
FAMILY = """
from pathlib import Path

from gate_op import TemporalGate
from models import Family, Layout, VideoResNet, register
from models.resnet import options_of


def gated(size, num_classes, num_segments, **options):
    gate = options_of(TemporalGate, options)
    model = VideoResNet(size, num_classes, num_segments, **options)
    make = lambda block: TemporalGate(block.conv2.in_channels, num_segments, **gate)
    model.insert("before_conv2", "gate", make, blocks=[(0, 1), (2, 1)])
    return model


LAYOUT = Layout(
    "GATE",
    mark=lambda state: any(".tgate." in key for key in state),
    rename=lambda key: None if key.endswith(".flops") else key.replace(".tgate.", ".gate."),
    model=lambda state: "gated_tiny" if any(".tgate." in key for key in state) else None,
    num_segments=lambda file_name: 4 if "_4f" in file_name else None,
)
FAMILY = Family("gated", gated, LAYOUT, recipes=Path(__file__).parent)
register(FAMILY)
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """The user's folder, with its family registered. The data and runs of the tests below are next to it."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "gate_op.py").write_text(OPERATOR)
    (folder / "gate_family.py").write_text(FAMILY)
    (folder / "gated_r50.yaml").write_text("base: tsn_r50\nlr_mults: {gate: 3}\n")
    (folder / "gated_tiny.yaml").write_text("base: tsn_tiny\nlr_mults: {gate: 3, gate_offset: 0.5}\n")
    sys.path.insert(0, str(folder))
    family = importlib.import_module("gate_family").FAMILY
    yield folder
    families.FAMILIES.remove(family)
    sys.path.remove(str(folder))


def test_it_is_listed_and_built_with_its_options(outside):
    assert {"gated_r50", "gated_tiny"} < set(list_models())
    model = build_model("gated_tiny", 5, 4, taps=5)
    assert model.base_model.layer1[1].gate.conv.kernel_size == (5,) and not hasattr(model.base_model.layer1[0], "gate")
    assert model(torch.randn(2, 4, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(ValueError, match="a model 'gated_r50' exists; choose another name"):
        families.register(importlib.import_module("gate_family").FAMILY)


def test_it_starts_from_an_imagenet_file(outside):
    imagenet = resnet50()
    model = build_model("gated_r50", 5, 4)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_weights(model, imagenet.state_dict())
    assert report.layout == "imagenet" and len(report.loaded) == len(imagenet.state_dict()) - 2
    assert all(key.startswith(("new_fc.", *model.not_in_imagenet)) for key in report.missing)
    assert torch.equal(model.base_model.layer1[1].gate.conv.weight, start["base_model.layer1.1.gate.conv.weight"])
    assert torch.equal(model.base_model.layer1[1].conv2.weight, imagenet.layer1[1].conv2.weight)


def test_its_group_has_the_factor_of_the_recipe(outside):
    recipe = load_recipe("gated_tiny", "toy_something")
    model = build_for_training("gated_tiny", 5, recipe, torch.device("cpu"), with_weights=False)
    groups = {group["name"]: group for group in build_optimizer(model, recipe).param_groups}
    gate = {name: (group["lr_mult"], group["decay_mult"]) for name, group in groups.items() if "gate" in name}
    assert gate == {"gate_weight": (3, 1), "gate_bias": (6, 0), "gate_offset": (0.5, 0)}
    assert {name.rpartition(".")[2] for name in groups["gate_weight"]["param_names"]} == {"weight", "scale"}
    assert load_recipe("gated_tiny", "toy_something", gate_lr_mult="7").lr_mults["gate"] == 7
    with pytest.raises(ConfigError, match="unknown group in lr_mults 'gat'; did you mean gate"):
        parameter_groups(model, {"gat": 2})


def test_a_parameter_that_nobody_declared_is_an_error(outside):
    model = build_model("gated_tiny", 5, 4)
    model.base_model.layer1[1].gate.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ConfigError, match="layer1.1.gate.extra: TemporalGate does not declare this parameter"):
        parameter_groups(model)
    model.base_model.layer1[1].gate.extra.requires_grad_(False)
    parameter_groups(model)


def test_it_trains_and_is_tested(outside):
    """The programs as users call them, from another folder. They know the family by ``--import`` alone."""
    dataset, family = make_dataset(outside), ["--import", outside / "gate_family.py"]
    command = ["main.py", dataset, "gated_tiny", *family, "--run", "gated", "--gate_lr_mult", 2]
    result = run(*command, *quick_flags(epochs=1), cwd=outside)
    assert result.returncode == 0, result.stdout
    assert "group: gate_weight has 4 params, lr_mult: 2.0, decay_mult: 1.0" in result.stdout
    best = "net_runs/gated/resnet_rgb_model_best.pth.tar"
    start = build_model("gated_tiny", len(NAMES), 4).base_model.layer1[1].gate.scale
    trained = torch.load(outside / best, weights_only=True)["state_dict"]["base_model.layer1.1.gate.scale"]
    assert not torch.equal(trained, start)
    testing = ["test_models.py", dataset, "--weights", best, "--workers", 0, "--scores", "gated.npz"]
    assert "error: " in run(*testing, cwd=outside).stdout
    result = run(*testing, *family, cwd=outside)
    assert result.returncode == 0 and "Top-1" in result.stdout, result.stdout
    assert np.isfinite(np.load(outside / "gated.npz")["scores"]).all()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "cannot be imported (ModuleNotFoundError: No module named 'mine')"),
        ("import nowhere", "cannot be imported (ModuleNotFoundError: No module named 'nowhere')"),
        ("(", "cannot be imported (SyntaxError: "),
        ("models", "another module is called models ("),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(tmp_path, code, message):
    name = "models.py" if code == "models" else "mine.py"
    if code is not None:
        (tmp_path / name).write_text(code)
    result = run("test_models.py", "toy_something", "--import", name, "--weights", "x.pth", cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stdout
    assert f"test_models.py: error: --import {name}: {message}" in result.stdout


def test_its_released_layout_is_converted(outside):
    model, other = build_model("gated_tiny", 5, 4), build_model("gated_tiny", 5, 4)
    released = {f"module.{key}".replace(".gate.", ".tgate."): value for key, value in model.state_dict().items()}
    released["module.base_model.layer1.1.flops"] = torch.zeros(1)
    report = load_weights(other, {"state_dict": released})
    assert report.layout == "GATE" and not report.missing
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert released_model(released) == "gated_tiny" and released_segments("folder/gated_4f.pth") == 4
    with pytest.raises(WeightsError, match="not in the model: base_model.layer1.1.gate.scale"):
        load_weights(build_model("tsn_tiny", 5, 4), released)


def test_it_is_counted_and_exported(outside, tmp_path):
    (plain, plain_macs), (gated, gated_macs) = (costs(build_model(f"{n}_tiny", 5, 4), 4, 32) for n in ("tsn", "gated"))
    assert gated - plain == (16 + 64) * 4 + 2 * 2 and gated_macs > plain_macs
    assert export_program(build_model("gated_tiny", 5, 4), tmp_path / "gated.pt2", 32) < 1e-4
