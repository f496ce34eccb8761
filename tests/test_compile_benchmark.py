"""``python -m benchmarks.compile`` and the test column of ``benchmarks.training``, on a toy network."""

import re
import sys

from torch import nn

from benchmarks import compile as benchmark
from benchmarks import training

WORDS = ["tsn_tiny", "--device", "cpu", "--size", "32", "--num_segments", "2"]


def rows(monkeypatch, capsys, module, *words: str) -> list[str]:
    """The table that a benchmark prints. The compiler's backend only traces, because generating code takes long."""
    trace = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: trace(self, backend="eager"))
    monkeypatch.setattr(module, "keep_freed_memory", lambda: None)  # it would stay on in this process
    monkeypatch.setattr(sys, "argv", ["benchmark", *WORDS, *words])
    module.main()
    return capsys.readouterr().out.strip().splitlines()[2:]


def test_a_compiled_network_beside_an_eager_one(monkeypatch, capsys):
    head, _, row = rows(monkeypatch, capsys, benchmark, "--rounds", "1")
    assert head.startswith("| network | training, compiled / eager | test, compiled / eager | seconds to compile")
    name, *ratios, training_seconds, test_seconds, steps, logits, loss, norm, graphs = row.strip("| ").split(" | ")
    assert name == "tsn_tiny" and all(re.fullmatch(r"\d+\.\d\d", ratio) for ratio in ratios)
    assert all(re.fullmatch(r"-?\d+", value) for value in (training_seconds, test_seconds, steps))
    assert max(map(float, (logits, loss, norm))) < 1e-5 and graphs == "2"


def test_every_setting_has_a_training_step_and_a_test_pass(monkeypatch, capsys):
    monkeypatch.setattr(training, "memory_of", lambda *_: 100.0)
    table = rows(monkeypatch, capsys, training, "--steps", "1", "--only", "channels_last")
    assert table[0] == "| model | setting | time of a step / plain | of a test pass / plain | peak memory / plain |"
    assert table[2] == "| tsn_tiny | plain | 1.00 | 1.00 | 1.00 (100 MB) |"
    assert re.fullmatch(r"\| tsn_tiny \| channels_last \| \d+\.\d\d \| \d+\.\d\d \| 1\.00 \|", table[3])
