"""Compares the R50 networks of the compared systems with their released code: names, logits, first step, groups, cost.

The stored values are in tests/golden/compared. The modules have tests of their own, one file a system.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from golden_values import compared_state, formula_parameter, formula_tensor, relative_error, table

from engine.config import load_recipe
from engine.optim import parameter_groups
from engine.step import logits_and_loss
from models import build_model, load_weights
from models.costs import costs
from models.families import models

NETWORKS = Path(__file__).parents[1] / "docs" / "networks.md"


@dataclass(frozen=True)
class System:
    """The stored values of a network, and the size of their input."""

    stored: str  # beginning of the names of the stored values
    parameters: int  # with 174 classes
    multiply_adds: float  # 10^9, one clip of ``frames`` frames at 224 px
    names: str = ""  # beginning of the name of the table of names, if not ``stored``
    part: str = ""  # beginning of the keys in the table of values
    options: dict = field(default_factory=dict)
    frames: int = 8
    groups: str = ""  # table of the released parameter groups; empty: one group with decay, or none was released
    train_shape: tuple[int, ...] = (2, 24, 64, 64)  # of the clips of the training step
    loss: str = "train_losses"
    norm: str = "grad_norms"
    dtype: torch.dtype = torch.float32  # of the training step
    logits: str = "logits"


SINGLE = {"loss": "train_loss", "norm": "grad_norm", "dtype": torch.float64}
LARGER = SINGLE | {"train_shape": (4, 24, 96, 96)}
SYSTEMS = {
    "tanet_r50": System("tam_r50", 25_127_246, 32.950, names="tam", groups="tam"),
    "tea_r50": System("tea_r50", 24_456_280, 34.745, names="tea", groups="tea"),
    "stm_r50": System("stm_r50", 24_035_666, 33.256, names="stm"),
    "teinet_r50": System("teinet_r50", 29_893_822, 33.055, names="teinet"),
    "teinet_r50 thirdparty": System(
        "teinet_r50",
        29_893_822,
        33.055,
        "teinet",
        options={"reading": "thirdparty"},
        logits="logits_thirdparty",
        loss="",
    ),
    "gst_r50": System("gst_r50", 21_035_246, 29.178, groups="gst_r50"),
    "gst_large_r50": System("gst_large_r50", 29_523_182, 40.277, groups="gst_large_r50"),
    "tin_r50": System("tin_r50", 23_895_566, 32.879, groups="tin_r50"),
    "tin_r50 partial_bn": System(
        "tin_r50",
        23_895_566,
        32.879,
        options={"partial_bn": True},
        groups="tin_r50_pbn",
        loss="train_losses_partial_bn",
        norm="grad_norms_partial_bn",
    ),
    "tsm_tpn_r50": System("tpn_r50", 82_445_724, 41.413),
    "smallbig_r50": System("smallbig_r50", 23_907_566, 52.18, names="smallbig", **LARGER),
    "smallbig_r50 extra": System(
        "smallbig_r50", 31_829_742, 62.93, "smallbig_extra", "extra/", options={"extra": True}, **LARGER
    ),
    "c3d_r50": System("c3d_r50", 46_499_054, 62.47, names="c3d", **SINGLE),
    # The stored count of RubiksNet, 15.44 and 3.74, has one operation for each value of a batch norm. fvcore has two.
    "rubiksnet_large": System("rubiksnet_r50", 8_538_294, 15.44 + 0.091, names="rubiksnet", loss=""),
    "rubiksnet_tiny": System(
        "rubiksnet_r50", 1_898_760, 3.74 + 0.040, "rubiksnet_tiny", "tiny/", **LARGER | {"norm": ""}
    ),
    "v4d_r50": System("v4d_r50", 36_709_614, 286.05, names="v4d", frames=32, train_shape=(2, 96, 64, 64), **SINGLE),
}


def build(name: str, state: dict | None = None, **options):
    """The network of a system with the stored weights, or with weights of ``state``."""
    system = SYSTEMS[name]
    options = {"dropout": 0.0, "num_segments": system.frames} | system.options | options
    model = build_model(name.split()[0], 174, **options)
    state = compared_state(system.names or system.stored) if state is None else state
    report = load_weights(model, {f"module.{key}": value for key, value in state.items()})
    assert len(report.loaded) == len(model.state_dict()) and not report.missing and not report.unexpected
    return model


def stored(name: str, key: str):
    return table(f"compared/{SYSTEMS[name].stored}.npz")[SYSTEMS[name].part + key]


def clips(shape) -> torch.Tensor:
    """The stored input, ``(N, T*3, H, W)`` -> ``(N, T, 3, H, W)``."""
    return formula_tensor("input", shape).unflatten(1, (-1, 3))


@pytest.mark.parametrize("name", SYSTEMS)
def test_logits(name):
    with torch.no_grad():
        logits = build(name).eval()(clips((2, 3 * SYSTEMS[name].frames, 64, 64)))
    assert relative_error(logits, stored(name, SYSTEMS[name].logits)) < 1e-5


@pytest.mark.parametrize("name", ["tanet_r50", "tea_r50", "stm_r50", "teinet_r50"])
def test_logits_of_16_frames(name):
    state = compared_state(SYSTEMS[name].names)
    for key, value in state.items():
        if ".tam.G." in key:  # its shapes depend on T
            shape = [16 if n == 8 else 32 if n == 16 else n for n in value.shape]
            state[key] = formula_parameter(key, shape)
    with torch.no_grad():
        logits = build(name, state, num_segments=16).eval()(clips((1, 48, 64, 64)))
    assert relative_error(logits, stored(name, "logits_t16")) < 1e-5


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.loss])
def test_first_training_step(name):
    system = SYSTEMS[name]
    model = build(name).to(system.dtype).train()
    labels = torch.arange(system.train_shape[0]) * 37 % 174
    _, losses = logits_and_loss(model, model(clips(system.train_shape).to(system.dtype)), labels, label_smoothing=0.0)
    assert math.isclose(losses.mean().item(), stored(name, system.loss).flat[0], rel_tol=1e-5)
    losses.mean().backward()
    parts = {"grad_norm_shift": True, "grad_norm_rest": False} if not system.norm else {system.norm: None}
    for key, is_shift in parts.items():
        gradients = [
            parameter.grad
            for parameter_name, parameter in model.named_parameters()
            if parameter.requires_grad and is_shift in (None, parameter_name.endswith(".shift"))
        ]
        norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        assert math.isclose(norm.item(), stored(name, key).flat[0], rel_tol=1e-4), key


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.groups])
def test_parameter_groups(name):
    system, family = SYSTEMS[name], models()[name.split()[0]][0]
    expected = {
        family.layout.rename(parameter): (group["lr_mult"], group["decay_mult"])
        for group in table(f"compared/{system.groups}_param_groups.json")
        for parameter in group["params"]
    }
    model = build_model(name.split()[0], 174, 8, **system.options)
    groups = parameter_groups(model, load_recipe(name.split()[0], "something_v1").lr_mults)
    actual = {p: (group["lr_mult"], group["decay_mult"]) for group in groups for p in group["param_names"]}
    assert actual == expected


@pytest.mark.parametrize("name", ["tsm_tpn_r50", "smallbig_r50"])
def test_one_group(name):
    recipe = load_recipe(name, "something_v1")
    assert recipe.decay_all and not recipe.lr_multipliers


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name.split()[-1] not in ("thirdparty", "partial_bn")])
def test_costs(name):
    system = SYSTEMS[name]
    model = build_model(name.split()[0], 174, system.frames, **system.options)
    parameters, multiply_adds = costs(model, system.frames, 224)
    assert parameters == system.parameters
    assert math.isclose(multiply_adds / 1e9, system.multiply_adds, rel_tol=5e-3)
    if not system.options:
        assert re.search(rf"\| {name} \|.*\| {parameters:,} \| {multiply_adds / 1e9:.3f} \|", NETWORKS.read_text())
