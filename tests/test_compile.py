"""``--compile``: each network is one graph, ``auto`` says what it does, and only training is compiled."""

import dataclasses
import re

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from toy_run import make_dataset, quick_flags, run_inside

from engine import compile as compiling
from engine.batch import BatchPlan
from engine.compile import LONG_RUN, choose_compilation
from engine.config import ConfigError, coerce, load_recipe, to_plain
from engine.precision import Precision
from engine.step import train_step
from models import build_model, families

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BEST = "resnet_rgb_model_best.pth.tar"
# The smallest network of each family.
SMALLEST = [f"{family.name}_{(family.toy or family.sizes)[0]}" for family in families.FAMILIES]


@pytest.fixture(autouse=True)
def no_earlier_graphs():
    torch._dynamo.reset()


@pytest.mark.parametrize("name", SMALLEST)
def test_the_training_pass_of_a_network_is_one_graph(name):
    """RSA's fast path is one operator in it."""
    model = build_model(name, 5, 8).train()
    found = torch._dynamo.explain(model)(torch.randn(2, 8, 3, 48, 48))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
    operators = {node.target for node in found.graphs[0].graph.nodes}
    assert bool(operators & {torch.ops.rsa.fused, torch.ops.rsa.fused.default}) == (name == "rsanet_tiny")


def test_a_graph_break_is_counted():
    model = build_model("tsn_tiny", 5, 8).train()
    model.new_fc.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    assert torch._dynamo.explain(model)(torch.randn(1, 8, 3, 48, 48)).graph_break_count > 0


@pytest.fixture
def faster(monkeypatch):
    """tsn_r50 counts as faster compiled."""
    tsn = dataclasses.replace(families.FAMILIES[0], compiled=("r50",))
    monkeypatch.setattr(families, "FAMILIES", [tsn, *families.FAMILIES[1:]])


def choose(model="tsn_r50", device=CPU, videos=LONG_RUN, **changes):
    return choose_compilation(load_recipe(model, "something_v1", **{"epochs": 1} | changes), model, device, videos)


def test_auto_compiles_long_runs_of_networks_that_it_makes_faster(faster):
    assert load_recipe("rsanet_r50", "something_v1").compile == "auto"
    assert choose() == (
        True,
        "compile: yes, because it makes tsn_r50 faster and 100000 clips are a long run; the first step takes minutes",
    )
    assert choose(epochs=10, videos=LONG_RUN // 10)[0] and choose() == choose()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"videos": LONG_RUN - 1}, "it takes minutes, and this run is short: 99999 clips, less than 100000"),
        ({"model": "tsn_tiny"}, "it is not known to make tsn_tiny faster on a CPU (benchmarks/RESULTS.md)"),
        ({"device": GPU}, "it was not measured on a GPU; ./scripts/check_gpu.sh measures it, and --compile true "),
        ({"activation_checkpointing": True}, "PyTorch cannot combine it with activation_checkpointing"),
        ({"compile": False}, "compile is false"),
    ],
)
def test_the_reason_for_not_compiling_is_logged(faster, changes, reason):
    compiled, line = choose(**changes)
    assert not compiled and line.startswith(f"compile: no, because {reason}")


def test_a_machine_without_a_compiler(faster, monkeypatch, tmp_path):
    """``auto`` goes on without it, and ``true`` is an error. On a GPU, Triton compiles."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = "there is no C++ compiler 'no-such-compiler'; install one, or name yours in the environment variable CXX"
    assert choose() == (False, f"compile: no, because {reason}")
    with pytest.raises(ConfigError, match="compile is true, but there is no C.. compiler .*, or use --compile false$"):
        choose(compile=True)
    assert choose(compile=True, device=GPU)[0]
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda _: str(tmp_path))
    assert "Python's headers (Python.h) are not installed; install them" in choose()[1]


def test_values_of_the_key():
    for value, expected in (("auto", "auto"), ("true", True), ("false", False), (True, True), (False, False)):
        assert coerce("compile", value) is expected or coerce("compile", value) == expected == "auto"
    with pytest.raises(ConfigError, match="^compile is 'always'; choose from auto, true, false$"):
        coerce("compile", "always")
    old = to_plain(load_recipe("tsn_r50", ""))
    assert load_recipe("tsn_r50", "", kept=old | {"compile": True}).compile is True
    del old["compile"]
    assert load_recipe("tsn_r50", "", kept=old).compile is False  # as when the key did not exist


def test_only_training_is_compiled_and_checkpoints_keep_their_names(tmp_path, monkeypatch):
    """A run compiles one graph, whatever its validations do.

    The backend only traces, because generating code takes minutes (benchmarks/compile.py does it).
    """
    dataset = make_dataset(tmp_path)
    graphs, passes, trace = [], [], torch.compile

    def backend(graph, _):
        graphs.append(graph)
        return lambda *values: passes.append(torch.is_grad_enabled()) or graph(*values)

    monkeypatch.setattr(torch, "compile", lambda model: trace(model, backend=backend, fullgraph=True))
    states = []
    for name, switch in (("eager", "false"), ("compiled", "true")):
        flags = [*quick_flags(epochs=2, partial_bn="true"), "--compile", switch]
        result = run_inside("main.py", dataset, "tsn_tiny", "--run", name, *flags, cwd=tmp_path)
        assert result.returncode == 0, result.stdout
        reason = f"because compile is {switch}"
        assert re.search(rf": compile: {'yes' if switch == 'true' else 'no'}, {reason}", result.stdout), result.stdout
        assert len(graphs) == bool(passes) == (switch == "true")
        states.append(torch.load(tmp_path / "net_runs" / name / BEST, weights_only=True)["state_dict"])
    assert all(passes) and states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-5, atol=1e-6, msg=key)
    more = [*quick_flags(epochs=3), "--ema_decay", 0.5, "--resume", "auto"]
    result = run_inside("main.py", dataset, "tsn_tiny", "--run", "compiled", *more, cwd=tmp_path)
    assert result.returncode == 0 and "compile: yes, because compile is true" in result.stdout, result.stdout
    content = torch.load(tmp_path / "net_runs/compiled/resnet_rgb_epoch_3_checkpoint.pth.tar", weights_only=True)
    assert states[0].keys() == content["state_dict"].keys() == content["train_state_dict"].keys()
    assert len(graphs) == 1 and all(passes)  # the resumed network has the same graph


def test_a_compiled_network_in_several_processes():
    """Dropout is off. A network with an auxiliary head has a loss that reads an attribute of the network."""
    model = build_model("tsm_tpn_tiny", 5, 8, dropout=0.0).train()
    clips, labels = torch.randn(2, 8, 3, 48, 48), torch.tensor([0, 3])
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    step = lambda net: train_step(net, [(clips, labels)], sgd, BatchPlan(2), Precision("fp32", CPU))  # noqa: E731
    expected = step(model)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = step(DistributedDataParallel(torch.compile(model, backend="eager", fullgraph=True)))
    finally:
        dist.destroy_process_group()
    assert (found.loss, found.norm) == pytest.approx((expected.loss, expected.norm), rel=1e-5)
