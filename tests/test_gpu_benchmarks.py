"""The tables that ``benchmarks.network`` and ``benchmarks.rsa`` print on a GPU, with made-up times, and their flags."""

import argparse
import sys
import time

import pytest
import torch

from benchmarks import loader, network, rsa
from benchmarks.network import COLUMNS, Measured, Variant
from data import DatasetConfig
from ops import rsa_fused


def run(program, monkeypatch, capsys, *words: object) -> tuple[str, str]:
    """Run the main function of a benchmark; returns its two streams."""
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, words)])
    program.main()
    return tuple(capsys.readouterr())


def rows(output: str) -> list[list[str]]:
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.fixture
def groups(monkeypatch):
    """The networks that are in memory together. TSN takes 1 s a step, the others 2 s; half of it if compiled."""
    found, reset = [], []

    def measure(variants, args):
        assert len(reset) > len(found)  # Dynamo forgets the networks before these
        found.append([variant.name for variant in variants])
        return {
            x: Measured(
                [(1 + ("tsn" not in x.model)) / (1 + x.compiled), 0.5], [900.4, 90], 33.3 if x.compiled else None
            )
            for x in variants
        }

    monkeypatch.setattr(network, "measure", measure)
    monkeypatch.setattr(network, "count", lambda model, args: (1234567, 2e9))
    monkeypatch.setattr("torch.compiler.reset", lambda: reset.append(1))
    for module in ("measure", "network"):  # the heading's and the rows'
        monkeypatch.setattr(f"benchmarks.{module}.machine", lambda device: "a GPU")
    return found


def test_a_gpu_table_has_rates_and_memory_and_two_networks_at_a_time(tmp_path, monkeypatch, capsys, groups):
    words = ["tsm_tiny", "rsanet_tiny", "--device", "cuda", "--clips", 4, "--precision", "bf16", "fp32"]
    words += ["--num_segments", 8, 16, "--rsa_backends", "reference", "fused", "--out", tmp_path / "n.csv"]
    output, _ = run(network, monkeypatch, capsys, *words)
    pairs = [["tsn_tiny"], ["tsn_tiny", "tsm_tiny"], ["tsn_tiny", "rsanet_tiny, reference", "rsanet_tiny, fused"]]
    assert groups == pairs * 4
    assert output.startswith("a GPU; 4 clips of 8 frames of 224 px, bf16, channels_last\n\n| network | parameters | G ")
    assert output.count("frames of 224 px") == 4 and "4 clips of 16 frames of 224 px, fp32, channels_last" in output
    head, *table = rows(output)[:5]
    assert head[3:] == ["training, share of tsn_tiny", "test, share", "peak MB, training", "peak MB, test"]
    assert [row[0] for row in table] == ["tsn_tiny", "tsm_tiny", "rsanet_tiny, reference", "rsanet_tiny, fused"]
    assert table[1] == ["tsm_tiny", "1,234,567", "2.00", "0.50 (2.0 clips/s)", "1.00 (8.0 clips/s)", "900", "90"]
    lines = (tmp_path / "n.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS) and len(lines) == 1 + 16
    assert lines[2] == "tsm_tiny,auto,1234567,2000000000.0,0.5,1,2,8,8,224,4,bf16,a GPU,false,900.4,90.0,"


def test_compiled_networks_have_rows_beside_the_others(monkeypatch, capsys, groups):
    words = ["tsn_tiny", "tsm_tiny", "--device", "cpu", "--clips", 4, "--compile"]
    table = rows(run(network, monkeypatch, capsys, *words, "both")[0])
    assert groups == [["tsn_tiny", "tsn_tiny, compiled"], ["tsn_tiny", "tsm_tiny", "tsm_tiny, compiled"]]
    assert [row[0] for row in table[1:]] == ["tsn_tiny", "tsn_tiny, compiled", "tsm_tiny", "tsm_tiny, compiled"]
    assert table[0][-1] == "first calls, s" and [row[-1] for row in table[1:]] == ["", "33", "", "33"]
    assert [row[3] for row in table[1:]] == ["1.00", "2.00", "0.50", "1.00"]
    table = rows(run(network, monkeypatch, capsys, *words, "true", "--one_by_one", "false")[0])
    assert groups[2] == ["tsn_tiny", "tsn_tiny, compiled", "tsm_tiny, compiled"] and len(groups) == 3


def test_networks_take_turns_and_their_peaks_are_measured_last(monkeypatch):
    calls = []

    def passes(variant, args):
        return {kind: lambda kind=kind: calls.append(f"{variant.name} {kind}") for kind in network.PASSES}

    monkeypatch.setattr(network, "passes", passes)
    monkeypatch.setattr(network, "peak_memory", lambda run, device: float(len(calls)))
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    variants = [Variant("tsn_tiny"), Variant("tsn_tiny", compiled=True)]
    found = network.measure(variants, argparse.Namespace(device="cuda", rounds=1))
    pair = ["tsn_tiny training", "tsn_tiny, compiled training"]
    tests = [name.replace("training", "test") for name in pair]
    assert calls == ["tsn_tiny, compiled training", "tsn_tiny, compiled test", *(pair * 3), *(tests * 3)]
    assert [found[variant].peaks for variant in variants] == [[8.0, 14.0]] * 2
    assert found[variants[0]].compiling is None and found[variants[1]].compiling >= 0


def test_a_path_that_cannot_be_used_has_no_row(capsys):
    args = argparse.Namespace(device="cpu", num_segments=8, rsa_backends=["triton", "fused"], compile="false")
    assert network.variants_of("rsanet_tiny", args) == [Variant("rsanet_tiny", "fused")]
    assert "left out: rsanet_tiny, triton: RSA: fused (backend='triton', but triton cannot" in capsys.readouterr().err
    assert network.variants_of("tsm_tiny", args) == [Variant("tsm_tiny")]


TINY = ("--device", "cpu", "--clips", 1, "--num_segments", 1, "--rounds", 1, "--stages", "res5", "--memory", "false")


@pytest.fixture
def sizes(monkeypatch):
    """The chunk sizes with which the passes of each path run. The passes take no time."""
    found = {}

    def operator(path, stage, training, args):
        return lambda: found.setdefault(path, []).append(rsa_fused.CHUNK_BYTES["cpu"]) or time.sleep(1e-4)

    monkeypatch.setattr(rsa, "operator", operator)
    monkeypatch.setattr(rsa, "rates", lambda args: (1e9, 1e9))
    return found


def test_each_row_of_the_fused_path_has_its_chunk_size(monkeypatch, capsys, sizes):
    own = rsa_fused.CHUNK_BYTES["cpu"]
    table = rows(run(rsa, monkeypatch, capsys, *TINY, "--chunk_mb", 0.5, 64)[0])
    names = ["reference", "fused", "fused, 0.5 MB chunks", "fused, 64 MB chunks"]
    assert [row[2] for row in table[1:5]] == names and [row[2] for row in table[5:9]] == names
    assert {*sizes["fused"]} == {own, 2**19, 2**26} and {*sizes["reference"]} == {own}
    assert sizes["fused"][:3] == [own, 2**19, 2**26] and own == rsa_fused.CHUNK_BYTES["cpu"]
    table = rows(run(rsa, monkeypatch, capsys, *TINY, "--chunk_mb", 64, "--paths", "reference")[0])
    assert {row[2] for row in table[1:]} == {"reference"}
    with pytest.raises(SystemExit):
        run(rsa, monkeypatch, capsys, *TINY, "--chunk_mb", 0)


def test_the_memory_of_a_chunk_size_is_measured_in_its_own_process(monkeypatch, capsys, sizes):
    monkeypatch.setattr(rsa, "peak_memory", lambda run, device: run() or 12.5)
    key = '["fused, 64 MB chunks", "res5", "training"]'
    output, _ = run(rsa, monkeypatch, capsys, *TINY, "--chunk_mb", 64, "--memory_of", key)
    assert output == "12.5\n" and sizes["fused"][-1] == 2**26


def test_a_path_that_fails_has_a_row_and_the_others_are_measured(monkeypatch, capsys, sizes):
    working = rsa.operator
    broken = {"fused"}

    def operator(path, *others):
        def fail():
            raise RuntimeError("out of resource: shared | memory")

        return fail if path in broken else working(path, *others)

    monkeypatch.setattr(rsa, "operator", operator)
    monkeypatch.setattr(sys, "argv", ["rsa", *map(str, TINY)])
    with pytest.raises(SystemExit, match="a path failed; its rows say why"):
        rsa.main()
    table = rows(capsys.readouterr().out)
    shown = ["res5", "training", "fused", "failed: RuntimeError: out of resource: shared / memory", ""]
    assert table[4] == shown and table[3][2:4] == ["reference", "1.00"] and "geometric mean" in table[-1]
    broken.add("reference")
    with pytest.raises(RuntimeError, match="out of resource"):
        rsa.main()


def test_a_gpu_measures_times_and_peaks_in_one_process(monkeypatch):
    args = argparse.Namespace(device="cuda", rounds=1, memory=True)
    runs = {name: lambda: None for name in ("reference", "fused", "triton")}
    peaks = iter([800.0, 400.0, 200.0])
    monkeypatch.setattr(rsa, "passes", lambda *_: (runs, {"fused, 64 MB chunks": "OutOfMemoryError: x"}))
    monkeypatch.setattr(rsa, "medians", lambda *_: {"reference": 0.05, "fused": 0.01, "triton": 0.005})
    monkeypatch.setattr(rsa, "peak_memory", lambda run, device: next(peaks))
    lines, faster, failed = rsa.measure("res2", "training", 0.001, args)
    assert rows("\n".join(lines)) == [
        ["res2", "training", "reference", "1.00 (50.00 ms)", "0.02", "800 MB"],
        ["res2", "training", "fused", "5.00 (10.00 ms)", "0.10", "0.50"],
        ["res2", "training", "triton", "10.00 (5.00 ms)", "0.20", "0.25"],
        ["res2", "training", "fused, 64 MB chunks", "failed: OutOfMemoryError: x", "", ""],
    ]
    assert faster == {"reference": 1.0, "fused": 5.0, "triton": 10.0} and list(failed) == ["fused, 64 MB chunks"]


@pytest.mark.parametrize(("load", "step"), [(0.05, 0.0), (0.0, 0.05)])
def test_waiting_for_the_loader_is_told_from_training(monkeypatch, load, step):
    """Each of four batches of two clips takes ``load`` seconds to come, and ``step`` seconds to train on."""

    class Loader:
        batch_sampler = argparse.Namespace(steps=4)
        dataset = argparse.Namespace(modality=argparse.Namespace(normalise=lambda clips: clips))

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

        def advance(self, seconds):
            self.now += seconds

    def batches(_):
        for _ in range(4):
            clock.advance(load)
            yield torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), {}

    clock = Clock()
    trainer = argparse.Namespace(device=torch.device("cpu"), model=None, optimizer=None, plan=None, precision=None)
    monkeypatch.setattr(loader, "batches", batches)
    monkeypatch.setattr(loader, "time", clock)
    monkeypatch.setattr(loader, "train_step", lambda *_: clock.advance(step))
    fed, alone = loader.one_pass(Loader, trainer, True), loader.one_pass(Loader, trainer, False)
    assert (fed.clips, alone.clips) == (8, 6)  # without training, the time ends when the last batch is there
    assert fed.seconds == pytest.approx(3 * load + 4 * step) and fed.waited == pytest.approx(3 * load)
    assert alone.seconds == pytest.approx(3 * load)


def test_the_list_of_the_loader_repeats_the_videos(tmp_path):
    (tmp_path / "list.txt").write_text("a 3 0\nb 3 1\n")
    config = DatasetConfig("x", 2, str(tmp_path), str(tmp_path / "list.txt"), str(tmp_path / "list.txt"), "{}.jpg")
    long = loader.long_list(config, tmp_path, 5)
    assert (tmp_path / "long.txt").read_text() == "a 3 0\nb 3 1\na 3 0\nb 3 1\na 3 0\n"
    assert long.val_list == config.val_list
