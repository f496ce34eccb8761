"""``python -m benchmarks.scaling``: the arithmetic of a run on many GPUs, and the simulated waiting for data."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from benchmarks import scaling
from benchmarks.scaling import AUTHORS, DATASETS, paper_run
from benchmarks.waiting import RATIOS, simulate, waiting_share
from data.description import FOLDER
from engine.loading import PREFETCH, make_loader
from engine.workers import batches
from models import build_model

FAST = ["--core_clips_per_second", "1000"]


def program(monkeypatch, capsys, *words: object) -> str:
    monkeypatch.setattr(sys, "argv", ["benchmarks.scaling", *map(str, words)])
    scaling.main()
    return capsys.readouterr().out


def table(text: str) -> list[dict[str, str]]:
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    )
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_numbers_of_clips_are_those_of_the_dataset_files():
    for dataset, (training, validation, _) in DATASETS.items():
        text = (FOLDER / f"{dataset}.yaml").read_text()
        assert f"{training:,} training and {validation:,} validation videos" in text


@pytest.mark.parametrize(
    "dataset, steps, validations, training_hours", [("something_v1", 1344, 80, 44.6), ("something_v2", 2639, 24, 64.5)]
)
def test_the_authors_steps_give_the_hours_of_their_log(dataset, steps, validations, training_hours):
    """86,017 clips x 80 epochs / 42.9 clips/s = 44.6 hours. The whole run took 2 % longer than both sums."""
    run = paper_run("rsanet_r50", dataset, 8, None, None)
    step, test_step, hours = AUTHORS[dataset]
    assert run.steps == steps and run.clips_per_gpu == 8 and run.learning_rate == 0.02
    training = run.training_hours(step)
    assert training == pytest.approx(training_hours, abs=0.05)
    assert training == pytest.approx(DATASETS[dataset][0] * 80 / (64 / step) / 3600, rel=1e-3)
    validation = run.validation_hours(64 / test_step)
    assert validation == pytest.approx(validations * DATASETS[dataset][1] * test_step / 64 / 3600)
    assert 0.975 * hours < training + validation < hours


def test_bytes_and_batches_of_a_step():
    run = paper_run("rsanet_r50", "something_v1", 8, None, None)
    network = build_model("rsanet_r50", 174, num_segments=16)
    assert run.gradient_bytes == sum(4 * parameter.numel() for parameter in network.parameters()) == 88_137_208
    assert run.exchange(12.5) == pytest.approx(2 * 7 / 8 * 88_137_208 / 12.5e9)
    assert paper_run("rsanet_r50", "something_v1", 1, None, None).exchange(12.5) == 0
    many = paper_run("rsanet_r50", "something_v1", 32, None, 8)  # 32 x 8 is more than the recipe's 64
    assert (many.plan.global_batch, many.steps, many.learning_rate) == (256, 336, 0.08)
    assert paper_run("rsanet_r50", "something_v1", 1, None, 8).clips_per_gpu == 64  # accumulated
    assert paper_run("sda_tsm_r50", "something_v1", 32, None, None).clips_per_gpu == 2  # 36 clips: shares of 2 and 1


def test_without_the_speed_of_a_gpu_there_are_no_hours(monkeypatch, capsys):
    text = program(monkeypatch, capsys, "--datasets", "something_v1", *FAST)
    assert "The speed of a GPU is not given, so no hours are computed." in text
    rows = table(text)
    assert [row["GPUs"] for row in rows] == ["1", "8", "32"] and not any("hours" in name for name in rows[0])
    # 8 clips in the time of the exchange: 8 / (1.75 x 88.137 MB / 12.5 GB/s)
    assert [row["exchange, 12.5 GB/s"] for row in rows] == ["none", "648", "146"]
    assert rows[0]["loader, 8 cores a GPU"] == "8,000"
    assert "give 44.6 h and 2.3 h of validation here; their log took 47.7 h" in text


@pytest.mark.parametrize(
    "words, limit, hours",
    [
        (["--link_gb_per_s", 450], "compute", "4.8"),  # 80 epochs of 1344 steps of 8 clips at 50 clips/s
        (["--link_gb_per_s", 1.25], "compute", "4.8 to 8.5"),
        (["--link_gb_per_s", 0.625], "exchange", "7.4 to 12.1"),
        (["--cores", 1, "--core_clips_per_second", 25, "--link_gb_per_s", 450], "loader", "9.6"),
    ],
)
def test_the_first_limit(monkeypatch, capsys, words, limit, hours):
    given = ["--clips_per_second", 50, "--gpus", 8, "--datasets", "something_v1", *FAST, *words]
    (row,) = table(program(monkeypatch, capsys, *given))
    assert (row["first limit"], row["hours"]) == (limit, hours)
    assert row["compute, ms"] == "160.0"


def test_the_table_of_a_gpu(monkeypatch, capsys, tmp_path):
    """The fastest path of the network in this form is taken. A row of a CPU is refused."""
    columns = "model,backend,training_clips_per_second,test_clips_per_second,num_segments,size,clips,precision,machine"
    rows = ["rsanet_r50,fused,900,2000,16,224,8,fp32,CPU", "rsanet_r50,fused,40,80,16,224,8,fp32,A GPU"]
    rows += ["rsanet_r50,triton,50,100,16,224,8,fp32,A GPU", "rsanet_r50,triton,70,140,8,224,8,fp32,A GPU"]
    file = tmp_path / "network.csv"
    file.write_text("\n".join([columns, *rows]))
    words = ["--measured", file, "--gpus", 8, "--datasets", "something_v1", "--link_gb_per_s", 450, *FAST]
    text = program(monkeypatch, capsys, *words)
    assert "One GPU trains 50.0 clips/s, A GPU, 8 clips of 224 px in a pass, triton, fp32." in text
    assert table(text)[0]["hours"] == "5.1"  # 4.8 and 80 x 11,522 clips at 800 clips/s
    with pytest.raises(SystemExit, match="no row of a GPU has model rsanet_r50, num_segments 16, .* precision bf16"):
        program(monkeypatch, capsys, *words, "--precision", "bf16")
    file.write_text("model,top1\nrsanet_r50,54\n")
    with pytest.raises(SystemExit, match="its columns are not those of benchmarks.network"):
        program(monkeypatch, capsys, *words)
    with pytest.raises(SystemExit, match="no table none.csv; write it on a GPU with"):
        program(monkeypatch, capsys, "--measured", "none.csv", *FAST)


def test_the_loader_is_measured(monkeypatch, capsys):
    text = program(monkeypatch, capsys, "--rounds", 1, "--datasets", "something_v1", "--num_segments", 2)
    threads = torch.get_num_threads()
    assert (
        f"measured on one core of this CPU (CPU, {threads} threads, " in text and "176x100 px, pixels: faithful" in text
    )
    assert int(table(text)[0]["loader, 8 cores a GPU"].replace(",", "")) > 8


def test_waiting_that_can_be_computed_by_hand():
    """One process makes a batch in 2 steps: half of the time is lost. Two processes are just fast enough."""
    assert waiting_share(np.full((400, 1), 2.0), workers=1, warm_up=100) == pytest.approx(0.5)
    assert waiting_share(np.full((400, 1), 2.0), workers=2, warm_up=100) == pytest.approx(0, abs=1e-9)
    stalled = np.full((40, 1), 0.5)
    stalled[20] = 4.0  # ordered when batch 18 is taken, so 2 steps are in stock and 2 are waited for
    assert waiting_share(stalled, workers=1, warm_up=10) == pytest.approx(2 / 32)
    others = np.concatenate([stalled, np.full((40, 3), 0.5)], axis=1)  # three GPUs wait for the fourth
    assert waiting_share(others, workers=1, warm_up=10) == pytest.approx(2 / 32)


def test_waiting_of_even_varied_and_stalling_loaders():
    _, head, rows = simulate([1, 8], 8, steps=4000)
    shares = {(row[0][:3], row[1]): [float(cell.removesuffix(" %")) for cell in row[2:]] for row in rows}
    assert [float(ratio) for ratio in head[2:]] == list(RATIOS)
    assert shares["all", "8"] == [10, 0, 0, 0, 0, 0]
    for kind in ("log", "1 b"):
        for one, eight in zip(shares[kind, "1"], shares[kind, "8"], strict=True):
            assert eight >= one  # eight GPUs wait for the slowest
    assert shares["log", "8"][1] > 3 and shares["log", "8"][3] < 0.1  # a faster loader evens out varied times
    assert shares["1 b", "8"][5] > 3  # but not stalls that are longer than the stock
    assert max(shares["the", "8"][2:]) < 1 < shares["1 b", "8"][2]  # a larger stock covers them


class Marking(Dataset):
    """Batches that leave a file when they are begun. Each tells its place and the number of its loading process."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __getitem__(self, k: int) -> tuple[int, int]:
        (self.folder / str(k)).touch()
        return k, get_worker_info().id


@pytest.mark.parametrize("workers", [1, 3])
def test_a_loader_follows_the_rules_of_the_simulation(tmp_path, workers):
    """Processes take batches in turn, batches come in order, and ``workers * PREFETCH`` are ordered ahead."""
    loader = make_loader(Marking(tmp_path), workers, torch.device("cpu"), list, sampler=range(20), batch_size=1)
    for k, ((place, process),) in enumerate(batches(loader)):
        assert (place, process) == (k, k % workers)
        begun = min(20, k + 1 + workers * PREFETCH)
        until = time.monotonic() + 60
        while len(os.listdir(tmp_path)) < begun and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(0.02)  # a process with nothing to do would begin a batch at once
        assert len(os.listdir(tmp_path)) == begun
