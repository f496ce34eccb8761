"""``python -m scripts.read_logs``: its tables, comparisons, files, pictures and errors."""

import csv
import math
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from log_files import MIDDAY, line, result, step, write_run
from toy_run import ROOT, run_inside

from engine.log_reader import FIGURES, read_log

LOGS = ROOT / "logs"


def read_logs(*words: object, cwd: Path = ROOT) -> str:
    shown = run_inside("scripts/read_logs.py", *words, cwd=cwd)
    assert shown.returncode == 0, shown.stdout
    return shown.stdout


def test_damaged_lines_of_each_file_are_said_in_one_line(tmp_path):
    file = tmp_path / "run.log"
    file.write_text("\n" * 16 + "Epoch: [3][\n" + line(step(0)) + "Validation Results: Prec@1 abc\n")
    shown = run_inside("scripts/read_logs.py", file, cwd=tmp_path).stdout
    assert shown.startswith(f"{file}: 2 lines look like log lines but cannot be read, first at line 17\n")
    file.write_text(line(step(0)) + "Epoch: [3][\n")
    shown = read_logs(file)
    assert shown.startswith(f"{file}: 1 line looks like a log line but cannot be read, first at line 2\n")
    file.write_text("Epoch: [3][\n")
    shown = run_inside("scripts/read_logs.py", file, cwd=tmp_path)
    assert shown.returncode == 1 and "1 line looks" in shown.stdout and "holds no line" in shown.stdout


def test_the_summary_has_a_row_for_each_run(tmp_path):
    training = write_run(tmp_path / "mine.log", [40, 53.986, 50])
    training.write_text(line("  epochs: 80", MIDDAY - timedelta(hours=47.7)) + training.read_text())
    test = tmp_path / "test.log"
    test.write_text("".join(map(line, result(51.5, 80.25))))
    bare = tmp_path / "bare.log"
    bare.write_text(step(0, 0, lr=0.1) + "\n" + step(0, lr=0.00002) + "\n" + step(1, 0) + "\n")
    table = [
        ["best", "last", "clips/s", "clips/s"],
        ["run", "epochs", "Top-1", "Top-5", "class", "epoch", "Top-1", "Top-5", "hours", "waiting", "no", "wait", "lr"],
        ["mine", "3/80", "53.986", "90.000", "12.34", "1", "50.000", "90.000", "47.70", "6.4", "8.0", "0.02"],
        ["test", "test", "51.500", "80.250", "12.34", "-", "51.500", "80.250", "0.00", "-", "-", "-"],
        ["bare", "1", "-", "-", "-", "-", "-", "-", "-", "6.4", "8.0", "0.00002-0.02"],
        ["Epochs", "count", "from", "0,", "as", "in", "the", "logs."],
    ]
    assert [text.split() for text in read_logs(training, test, bare).splitlines()] == table
    assert read_logs(training, training) == read_logs(training)


def test_the_summary_of_the_committed_logs_fits_into_120_columns():
    lines = read_logs(*sorted(LOGS.glob("*.log"))).splitlines()
    assert len(lines) == 3 + len(list(LOGS.glob("*.log"))) and max(map(len, lines)) <= 120
    (ours,) = (text.split() for text in lines if text.startswith("toy_rsanet_tiny "))
    assert ours[1:9] == ["10/10", "100.000", "100.000", "100.00", "7", "100.000", "100.000", "0.04"]
    assert ours[-1] == "0.00005-0.05"


def test_names_are_those_of_the_files_if_they_differ(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    names = ["a/train.log", "b/train.log", "other.log", f"{'long' * 20}.log", "a\tb.log"]
    for name in names:
        write_run(tmp_path / name, [50])
    shown = [text.split()[0] for text in read_logs(*names, cwd=tmp_path).splitlines()[2:-1]]
    assert shown == ["a/train.log", "b/train.log", "other", "longlonglon..onglonglong", "a\\tb"]


def test_epoch_tables(tmp_path):
    file = write_run(tmp_path / "run.log", [40, 60, 50, 45.5])
    head = "epoch       lr    loss    top1    top5 val_loss val_top1 val_top5 class_accuracy"
    rows = [
        f"    {i}  0.02000   1.500   40.00   70.00    1.250    {top1:.2f}    90.00          12.34"
        for i, top1 in enumerate((40, 60, 50, 45.5))
    ]
    end = "best 60.000 in epoch 1, last 45.500\n\n"
    assert read_logs(file, "--every", 2) == "\n".join([str(file), head, rows[0], rows[2], rows[3], end])
    assert read_logs(file, "--every", 1) == "\n".join([str(file), head, *rows, end])
    shown = run_inside("scripts/read_logs.py", file, "--every", 0, cwd=tmp_path)
    assert shown.returncode == 2 and "--every 0 must be at least 1" in shown.stdout


def test_two_logs_are_compared(tmp_path):
    a = write_run(tmp_path / "a.log", [40, 50, 52, 53, 54])
    b = write_run(tmp_path / "b.log", [41, 49, 55, 60], first=1)
    lines = read_logs("--compare", a, b).splitlines()
    assert lines[:2] == [f"A: {a}", f"B: {b}"] and lines[2].split() == ["Top-1", "Top-5", "training", "loss"]
    assert lines[3].split() == ["epoch", *["A", "B", "B", "-", "A"] * 3]
    assert lines[4].split() == ["0", "40.000", "-", "-", "90.000", "-", "-", "1.500", "-", "-"]
    assert lines[5].split()[:4] == ["1", "50.000", "41.000", "-9.000"] and lines[5].split()[-1] == "+0.000"
    best = "best Top-1 / Top-5: A 54.000 / 90.000 in epoch 4, B 60.000 / 90.000 in epoch 4; B - A: +6.000 / +0.000"
    assert lines[9:] == [best, "B is ahead from epoch 3 to 4, in validation Top-1"]
    assert len(read_logs("--compare", a, b, "--every", 4).splitlines()) == 8
    assert read_logs("--compare", b, a).endswith("\nA is ahead from epoch 3 to 4, in validation Top-1\n")
    write_run(b, [40, 50, 60, 70, 54])
    assert read_logs("--compare", a, b).endswith("\nequal in epoch 4, the last one that was validated in both\n")
    write_run(b, [40], first=7)
    assert read_logs("--compare", a, b).endswith("\nno epoch was validated in both logs\n")
    b.write_text(line(step(0)))
    assert read_logs("--compare", a, b).endswith("\nlog B holds no validation\n")
    shown = run_inside("scripts/read_logs.py", "--compare", a, cwd=tmp_path)
    assert shown.returncode == 2 and "--compare needs 2 logs, not 1" in shown.stdout


def test_all_figures_are_written_to_a_csv_file(tmp_path):
    a, b = write_run(tmp_path / "a.log", [40, math.nan]), write_run(tmp_path / "b.log", [41])
    b.write_text(line(step(0)) + b.read_text())
    out = tmp_path / "out.csv"
    assert read_logs(a, b, "--csv", out).endswith(f"\n{out}\n")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["log"], row["epoch"], row["val_top1"]) for row in rows] == [
        (str(a), "0", "40.0"),
        (str(a), "1", "nan"),
        (str(b), "0", "41.0"),
    ]
    for row, read in zip(rows, read_log(a) + read_log(b), strict=True):
        assert set(read) == set(FIGURES) == set(row) - {"log"}
        assert all(float(row[key]) == value or math.isnan(value) for key, value in read.items())


def test_curves_are_drawn(tmp_path):
    """Runs of any number, a run without validation, a name that is no formula, and a test."""
    write_run(tmp_path / "$a_$.log", [40, 50])
    write_run(tmp_path / "_hidden.log", [40, math.nan])
    (tmp_path / "bare.log").write_text(line(step(0)))
    (tmp_path / "test.log").write_text("".join(map(line, result(51.5))))
    names = ["$a_$.log", "_hidden.log", "bare.log", "test.log", *sorted(LOGS.glob("*.log"))]
    shown = read_logs(*names, "--plot", "all.png", cwd=tmp_path)
    assert shown.endswith("\nnot drawn, because it is the log of a test: test.log\nall.png\n")
    read_logs("$a_$.log", "--plot", "one.svg", cwd=tmp_path)
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert "best Top-1 50.00" in (tmp_path / "one.svg").read_text()
    assert "one.png" not in read_logs("test.log", "--plot", "one.png", cwd=tmp_path)


def test_without_matplotlib_only_the_picture_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    file = write_run(tmp_path / "run.log", [40])
    shown = run_inside("scripts/read_logs.py", file, "--plot", "x.png", cwd=tmp_path)
    assert shown.returncode == 1 and "\nrun      1/" not in shown.stdout and "40.000" in shown.stdout
    assert shown.stdout.endswith("\nerror: drawing needs matplotlib; pip install matplotlib\n")


@pytest.mark.parametrize("flag, ending", [("--plot", ".png or .pdf or .svg"), ("--csv", ".csv")])
def test_a_forgotten_file_name_overwrites_no_log(tmp_path, flag, ending):
    a, b = write_run(tmp_path / "a.log", [40]), write_run(tmp_path / "b.log", [41])
    before = a.read_text()
    shown = run_inside("scripts/read_logs.py", b, flag, a, cwd=tmp_path)
    assert shown.returncode == 2 and f"{flag} {a} must end in {ending}" in shown.stdout and a.read_text() == before


@pytest.mark.parametrize("flag, name", [("--plot", "none/x.png"), ("--csv", "none/x.csv")])
def test_a_file_that_cannot_be_written_is_one_line(tmp_path, flag, name):
    shown = run_inside("scripts/read_logs.py", write_run(tmp_path / "a.log", [40]), flag, name, cwd=tmp_path)
    error = f"error: {name}: cannot be written (No such file or directory)"
    assert shown.returncode == 1 and shown.stdout.splitlines()[-1] == error


def test_a_log_that_cannot_be_used_is_one_line_and_the_others_are_shown(tmp_path):
    good = write_run(tmp_path / "good.log", [40])
    (tmp_path / "empty.log").write_text("")
    (tmp_path / "other.log").write_bytes(bytes(range(256)) * 50)
    (tmp_path / "folder.log").mkdir()
    reasons = {
        "none.log": "cannot be read (No such file or directory)",
        "folder.log": "cannot be read (Is a directory)",
        "empty.log": "holds no line of a training or validation log",
        "other.log": "holds no line of a training or validation log",
    }
    errors = [f"error: {name}: {reason}" for name, reason in reasons.items()]
    for flags in ([], ["--every", 1]):
        shown = run_inside("scripts/read_logs.py", *reasons, good, *flags, cwd=tmp_path)
        assert shown.returncode == 1 and shown.stdout.splitlines()[:4] == errors and "40.00" in shown.stdout
    for words in (reasons, [*reasons][:2] + ["--compare"]):
        shown = run_inside("scripts/read_logs.py", *words, "--csv", "x.csv", "--plot", "x.png", cwd=tmp_path)
        assert shown.returncode == 1 and shown.stdout.splitlines() == errors[: 2 if "--compare" in words else 4]
    shown = run_inside("scripts/read_logs.py", "none.log", good, "--compare", cwd=tmp_path)
    assert shown.returncode == 1 and shown.stdout.splitlines() == errors[:1]


def test_it_starts_at_once(tmp_path):
    """It imports no large package. Its CPU seconds include the start of Python."""
    code = (
        "import runpy, sys, time\n"
        "sys.argv = ['read_logs', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('scripts.read_logs', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print(time.process_time(), *{'torch', 'numpy', 'yaml', 'matplotlib'} & set(sys.modules))\n"
    )
    words = [sys.executable, "-c", code, LOGS / "toy_rsanet_tiny.log", "--csv", tmp_path / "out.csv"]
    shown = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert shown.returncode == 0 and "toy_rsanet_tiny" in shown.stdout, shown.stderr
    seconds, *imported = shown.stdout.splitlines()[-1].split()
    assert not imported and float(seconds) < 0.5, seconds
