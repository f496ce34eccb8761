"""The clips of a step are shared correctly: arithmetic, order, gradients, learning rate."""

import re

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from toy_run import make_dataset, quick_flags, run, run_inside

from engine.batch import BatchPlan, StepSampler, plan_batch
from engine.config import ConfigError


@pytest.mark.parametrize(
    ("global_batch", "batch_size", "processes", "expected"),
    [
        (64, None, 8, (64, 8, 1)),
        (64, None, 1, (64, 64, 1)),
        (64, 8, 1, (64, 8, 8)),
        (64, 8, 2, (64, 8, 4)),
        (64, 10, 1, (64, 10, 7)),
        (36, None, 8, (36, 5, 1)),
        (64, 32, 4, (128, 32, 1)),
        (64, 16, 4, (64, 16, 1)),
    ],
)
def test_batch_arithmetic(global_batch, batch_size, processes, expected):
    plan = plan_batch(global_batch, batch_size, processes)
    assert (plan.global_batch, plan.per_process, plan.accumulation) == expected


def test_the_batch_line():
    assert str(plan_batch(64, 8, 2)) == "2 processes x 8 clips x 4 accumulated = 64"
    assert str(plan_batch(36, None, 8)) == "8 processes x at most 5 clips x 1 accumulated = 36"
    for batch, size, processes in ((4, None, 8), (3, 1, 2)):
        with pytest.raises(ConfigError, match=f"global_batch_size {batch} leaves some of {processes} processes"):
            plan_batch(batch, size, processes)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3), st.integers(0, 99))
def test_the_same_clips_make_a_step_however_they_are_shared(batch, processes, size, epoch, first_step):
    try:
        plan = plan_batch(batch, size, processes)
    except ConfigError:
        return
    samplers = [StepSampler(100, plan, rank, seed=3) for rank in range(processes)]
    alone = StepSampler(100, BatchPlan(plan.global_batch), 0, seed=3)
    for sampler in (*samplers, alone):
        sampler.epoch, sampler.first_step = epoch, min(first_step, sampler.steps)
    shares = [list(sampler) for sampler in samplers]
    assert all(len(share) == len(sampler) for share, sampler in zip(shares, samplers, strict=True))
    steps = list(alone)
    assert len(steps) == 100 // plan.global_batch - alone.first_step
    for i, clips in enumerate(steps):
        parts = [part for share in shares for part in share[i * plan.accumulation : (i + 1) * plan.accumulation]]
        assert sorted(sum(parts, [])) == sorted(clips) and len(set(clips)) == plan.global_batch
        sizes = [len(part) for part in parts]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1 and max(sizes) == plan.per_process
    alone.first_step = 0
    assert list(alone)[len(list(alone)) - len(steps) :] == steps  # continuing from a step gives the rest of the epoch


def test_epochs_are_shuffled_differently():
    sampler = StepSampler(50, BatchPlan(5), 0, seed=0)
    first = list(sampler)
    sampler.epoch = 1
    assert list(sampler) != first


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return make_dataset(folder, per_class=3)


def momentum_after_one_step(dataset, folder, name: str, processes: int = 1, **flags) -> list[torch.Tensor]:
    """The momentum after one step, which is the gradients with weight decay. Batch norm does not learn."""
    flags = {"epochs": 1, "global_batch_size": 6, "norm_eval": "true", "clip_gradient": "none"} | flags
    command = ["main.py", dataset, "rsanet_tiny", "--run", name, "--lr_multipliers", "true", *quick_flags(**flags)]
    result = run(*command, cwd=folder, processes=processes) if processes > 1 else run_inside(*command, cwd=folder)
    assert result.returncode == 0, result.stdout
    file = folder / "net_runs" / name / "resnet_rgb_epoch_1_checkpoint.pth.tar"
    state = torch.load(file, weights_only=True)["optimizer"]["state"]
    return [state[key]["momentum_buffer"] for key in sorted(state)]


@pytest.mark.parametrize(
    ("processes", "batch_size", "line"),
    [
        (1, 2, "1 process x 2 clips x 3 accumulated = 6"),
        (1, 4, "1 process x 3 clips x 2 accumulated = 6"),
        (2, "none", "2 processes x 3 clips x 1 accumulated = 6"),
        (2, 1, "2 processes x 1 clips x 3 accumulated = 6"),
        (3, "none", "3 processes x 2 clips x 1 accumulated = 6"),
    ],
)
def test_gradients_do_not_depend_on_processes_and_accumulation(small, tmp_path, processes, batch_size, line):
    alone = momentum_after_one_step(small, tmp_path, "alone")
    shared = momentum_after_one_step(small, tmp_path, "shared", processes, batch_size=batch_size)
    assert f"batch: {line}, lr 0.05" in (tmp_path / "logs" / "shared.log").read_text()
    scale = max(float(g.abs().max()) for g in alone)
    assert scale > 1e-2  # they are gradients, not only decay
    for a, b in zip(alone, shared, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * scale)


def test_uneven_shares_have_the_gradient_of_the_whole(small, tmp_path):
    """One process has three of five clips, the other has two."""
    alone = momentum_after_one_step(small, tmp_path, "alone", global_batch_size=5)
    shared = momentum_after_one_step(small, tmp_path, "shared", 2, global_batch_size=5)
    assert "2 processes x at most 3 clips x 1 accumulated = 5" in (tmp_path / "logs" / "shared.log").read_text()
    for a, b in zip(alone, shared, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(a.abs().max()) + 1e-9)


@pytest.mark.parametrize(
    ("flags", "lr"),
    [
        (["--global_batch_size", "4"], r"0.0125 \(0.05 x 4 / 16; --scale_lr false keeps 0.05\)"),
        (["--global_batch_size", "4", "--scale_lr", "false"], "0.05$"),
        (["--global_batch_size", "4", "--lr", "0.03"], "0.03$"),
        (["--global_batch_size", "2", "--batch_size", "4"], r"0.0125 \(0.05 x 4 / 16"),
    ],
)
def test_the_learning_rate_follows_the_global_batch(small, tmp_path, flags, lr):
    quick = ["--epochs", "1", "--workers", "0", "--num_segments", "4", "--device", "cpu"]
    result = run_inside("main.py", small, "tsn_tiny", "--run", "r", *quick, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    line = next(line for line in result.stdout.splitlines() if ": batch: " in line)
    assert re.search(rf"1 process x 4 clips x 1 accumulated = 4, lr {lr}", line), line
    stored = yaml.safe_load((tmp_path / "net_runs" / "r" / "config.yaml").read_text())["recipe"]
    assert stored["global_batch_size"] == 4 and str(stored["lr"]) == re.match(r"[\d.]+", lr)[0]
