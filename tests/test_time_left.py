"""The log lines about the time left: what they count and what they leave out. The published lines stay as they are."""

import math
import os
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
from kill_and_resume import start, wait_for
from toy_run import make_dataset, quick_flags, run_inside

from engine import time_left
from engine.config import load_recipe
from engine.log_reader import read_log
from engine.time_left import TimeLeft, duration

RECIPE = load_recipe("rsanet_r50", "something_v1", epochs=10, eval_every=4, eval_last=2)  # after epochs 4, 8, 9, 10
MINUTE = 60.0


@pytest.fixture
def clock(monkeypatch):
    """A clock that only ``clock.now += seconds`` moves."""
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time_left, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def train(left: TimeLeft, state: SimpleNamespace, clock, steps: int, seconds: float) -> list[str]:
    """Train some steps of ``seconds`` each; returns what ``first_line`` says after each."""
    lines = []
    for _ in range(steps):
        clock.now += seconds
        state.step += 1
        left.step(seconds)
        lines.append(left.first_line(state))
    return lines


def end_epoch(left: TimeLeft, state: SimpleNamespace, clock, tested: dict | None = None) -> str:
    """The line after an epoch. ``tested`` are the figures of its validation."""
    if tested:
        clock.now += tested["seconds"]
        state.best = max(state.best, tested["top1"])
    state.epoch, state.step = state.epoch + 1, 0
    return left.epoch_line(state, tested or {})


def validation(top1: float, top5: float = math.nan, seconds: float = 2 * MINUTE) -> dict[str, float]:
    return {"top1": top1, "top5": top5, "seconds": seconds}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (99.4, "99 s"),
        (99.6, "1.7 min"),
        (12 * 60, "12 min"),
        (99.6 * 60, "1.7 h"),
        (15 * 3600, "15 h"),
        (47.6 * 3600, "2.0 d"),
        (86400 * 200, "200 d"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_lines_of_a_run(clock):
    """10 epochs of 10 steps of a minute, validated after epochs 4, 8, 9 and 10 for two minutes each."""
    state, left = SimpleNamespace(epoch=0, step=0, best=-1.0), TimeLeft(RECIPE, 10)
    clock.now += 5  # until the first step
    assert train(left, state, clock, 1, 5 * MINUTE) == [""]  # the first step starts everything and is not counted
    first = "epoch 1/10: about 8.0 min left, the run about 98 min left without validations"
    assert train(left, state, clock, 9, MINUTE) == [first, *[""] * 8]
    assert end_epoch(left, state, clock) == "epoch 1/10, 14 min, 90 min left without validations"
    for epoch in (2, 3):
        assert set(train(left, state, clock, 10, MINUTE)) == {""}
        line = f"epoch {epoch}/10, 10 min, {100 - 10 * epoch} min left without validations"
        assert end_epoch(left, state, clock) == line
    train(left, state, clock, 10, MINUTE)
    # Six epochs and three validations of two minutes are left.
    assert end_epoch(left, state, clock, validation(41.24, 70.26)) == (
        "epoch 4/10, 12 min, 66 min left, val 41.2 / 70.3, best 41.2"
    )
    train(left, state, clock, 10, 2 * MINUTE)  # the disk is slower now
    assert end_epoch(left, state, clock) == "epoch 5/10, 20 min, 1.8 h left, best 41.2"
    for _ in range(2):
        train(left, state, clock, 10, MINUTE)
        line = end_epoch(left, state, clock)
    assert line == "epoch 7/10, 10 min, 36 min left, best 41.2"
    for tested in (validation(30.0), validation(50.0)):
        train(left, state, clock, 10, MINUTE)
        line = end_epoch(left, state, clock, tested)
    assert line == "epoch 9/10, 12 min, 12 min left, val 50.0, best 50.0"
    train(left, state, clock, 10, MINUTE)
    assert end_epoch(left, state, clock, validation(45.0)) == "epoch 10/10, 12 min, val 45.0, best 50.0"


def test_a_resumed_run_estimates_from_its_own_steps(clock):
    """It trains the last 4 of 10 steps of epoch 8. A mean over 10 steps would give less than half of the true time."""
    state, left = SimpleNamespace(epoch=7, step=6, best=40.0), TimeLeft(RECIPE, 10)
    lines = train(left, state, clock, 4, MINUTE)
    assert lines == ["", "epoch 8/10: about 2.0 min left, the run about 22 min left without validations", "", ""]
    assert end_epoch(left, state, clock, validation(39.0)) == (
        "epoch 8/10, 6.0 min for 4 of 10 steps, 24 min left, val 39.0, best 40.0"
    )


def test_a_resumed_run_that_has_only_to_validate_knows_no_training_time(clock):
    state, left = SimpleNamespace(epoch=7, step=10, best=0.0), TimeLeft(RECIPE, 10)
    line = end_epoch(left, state, clock, validation(39.0))
    assert line == "epoch 8/10, 2.0 min for 0 of 10 steps, val 39.0, best 39.0"
    train(left, state, clock, 10, MINUTE)
    assert end_epoch(left, state, clock, validation(39.0)).startswith("epoch 9/10, 12 min, 12 min left, ")


def test_epochs_of_one_step(clock):
    state, left = SimpleNamespace(epoch=0, step=0, best=-1.0), TimeLeft(replace(RECIPE, eval_last=1, eval_every=10), 1)
    assert train(left, state, clock, 1, 30.0) == [""]
    assert end_epoch(left, state, clock) == "epoch 1/10, 30 s, 4.5 min left without validations"
    assert train(left, state, clock, 1, 10.0) == [""]
    assert end_epoch(left, state, clock) == "epoch 2/10, 10 s, 80 s left without validations"


def test_the_line_of_the_start_does_not_come_after_the_first_epoch(clock):
    """The first of two steps is not measured, and the second ends the epoch. The line of the epoch then says it all."""
    state, left = SimpleNamespace(epoch=0, step=0, best=-1.0), TimeLeft(RECIPE, 2)
    for _ in range(2):
        assert train(left, state, clock, 2, MINUTE) == ["", ""]
        end_epoch(left, state, clock)


def lines_about_time(log: str) -> list[str]:
    return re.findall(r"\[INFO\] main\.py: +\d+: (epoch \d+/\d+.*)", log)


def test_a_run_logs_a_line_after_each_epoch(tmp_path):
    """The second epoch has no validation. The published lines stay, and the reader of logs ignores the new lines."""
    dataset = make_dataset(tmp_path, per_class=4)
    flags = quick_flags(epochs=3, print_every=1, global_batch_size=2, eval_every=10, eval_last=1)
    result = run_inside("main.py", dataset, "tsn_tiny", "--run", "r", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    file = tmp_path / "logs" / "r.log"
    first, *epochs, last = lines_about_time(file.read_text())
    assert re.fullmatch(r"epoch 1/3: about \S+ s left, the run about \S+ s left without validations", first)
    for number, line in enumerate(epochs, start=1):
        assert re.fullmatch(rf"epoch {number}/3, \S+ s, \S+ s left without validations", line)
    top1 = read_log(file)[-1]["val_top1"]
    assert len(epochs) == 2 and re.fullmatch(rf"epoch 3/3, \S+ s, val {top1:.1f}, best {top1:.1f}", last)
    lines = [line for line in file.read_text().splitlines(keepends=True) if not lines_about_time(line)]
    (tmp_path / "without.log").write_text("".join(lines))
    assert repr(read_log(tmp_path / "without.log")) == repr(read_log(file))  # as text, because one value is nan


def test_a_run_stopped_within_an_epoch_goes_on(tmp_path):
    make_dataset(tmp_path, per_class=16)  # 16 steps
    process = start(tmp_path, "r", 2, print_every=1, save_every="none")
    wait_for(process, "Epoch: [0][0/16]")
    os.kill(process.pid, signal.SIGTERM)
    output = process.communicate()[0]
    steps = int(re.search(r"stopped, 0 epochs and (\d+) steps", output)[1])
    words = ["main.py", "small.yaml", "tsm_tiny", "--run", "r", "--resume", "auto", "--device", "cpu"]
    result = run_inside(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    lines = [line for line in lines_about_time(result.stdout) if "about" not in line]
    assert re.match(rf"epoch 1/2, \S+ s for {16 - steps} of 16 steps, ", lines[0]), result.stdout
    assert re.match(r"epoch 2/2, \S+ s, val ", lines[1])
