"""``python -m benchmarks.released``: both forms of each system compute the same, and each place has a row."""

import argparse
import re
import sys

import pytest
import torch

from benchmarks import released

SMALL = argparse.Namespace(size=0.0625, clips=2, num_segments=4)
PLACES = [(system, place) for system, places in released.SYSTEMS.items() for place in places]


@pytest.mark.parametrize(("system", "place"), PLACES)
@pytest.mark.parametrize("training", [True, False])
def test_both_forms_have_the_same_output_and_gradients(system, place, training):
    made, modules, inputs = released.build(place, SMALL)
    outputs, gradients, cubes = [], [], []
    for name, module in modules.items():
        clip = made.clip if name == "released" else 0
        run = released.Run(module.double(), [x.double() for x in inputs], clip, "contiguous", "cpu")
        y = frames(run.module.train(training)(*run.inputs))
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
        outputs.append(y.detach())
        gradients.append([frames(x.grad) for x in run.inputs])
        sums = [p.grad.abs().pow(3).sum() for p in run.module.parameters() if p.grad is not None]
        cubes.append(torch.stack(sums).sum() if sums else torch.zeros(()))
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(*cubes, rtol=1e-7, atol=0)
    assert not torch.allclose(outputs[0], torch.zeros_like(outputs[0]))


def frames(x):
    return x.transpose(1, 2).flatten(0, 1) if x.dim() == 5 else x


def test_the_table_has_a_row_for_each_place(monkeypatch, capsys):
    words = ["--size", "0.0625", "--num_segments", "4", "--rounds", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmarks.released", *words])
    monkeypatch.setattr(released, "keep_freed_memory", lambda: None)  # it would stay on in this process
    released.main()
    _, _, head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert head == "| system | place | training | test |"
    assert [row.split(" | ")[0] for row in rows] == [f"| {system}" for system, _ in PLACES]
    assert all(re.fullmatch(r"\| \w+ \| \w[\w ,]+, [\dx and]+ \| \d+\.\d\d \| \d+\.\d\d \|", row) for row in rows), rows


def test_forms_that_differ_are_not_timed(monkeypatch):
    place = released.SYSTEMS["c3d"][0]
    made, modules, inputs = released.build(place, SMALL)
    with torch.no_grad():
        modules["released"].conv2.weight[0, 0, 0, 1, 1] += 0.1
    runs = {
        name: released.Run(module, inputs, made.clip * (name == "released"), "contiguous", "cpu")
        for name, module in modules.items()
    }
    with pytest.raises(SystemExit, match="^c3d: the output of 'released' differs by "):
        released.check("c3d", runs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tam", "tem"], "unknown system 'tem'; known: tam, tea, "),
        (["--num_segments", "6"], "--num_segments 6 must be a multiple of 4"),
    ],
)
def test_wrong_words_are_named(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["benchmarks.released", *words])
    with pytest.raises(SystemExit, match="2"):
        released.main()
    assert message in capsys.readouterr().err
