"""The figures of logs, ours and published ones, are read: accuracy, hours, epochs, and lines that are damaged."""

import math
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from log_files import MIDDAY, line, result, step, write_run

from engine.log_reader import read_log, read_run


def write_published(path: Path, tops: dict[int, tuple[float, float, float]]) -> int:
    """A log in the form of the published ones with all that can be between the lines; returns its damaged lines.

    It has 80 epochs of 1345 steps, each of 64 clips and 1.5 seconds. ``tops`` is epoch -> Top-1, Top-5 and class
    accuracy.
    """
    when, lines = datetime(2021, 5, 22, 17, 19), ["    (conv1): Conv3d(3, 64, kernel_size=(1, 7, 7))\n"] * 300

    def add(number: int, message: str) -> None:
        lines.append(f"{when:%Y-%m-%d %H:%M:%S} [{when:%m/%d %H:%M:%S}][INFO] main.py: {number}: {message}\r\n")

    add(401, "Namespace(arch='resnet50', epochs=80)")
    for epoch in range(80):
        for number in range(0, 1345, 20):
            when += timedelta(seconds=30)
            lines += [f"{when:%Y-%m-%d %H:%M:%S} clipping gradient: {number}.4 with coef 0.8" + 70 * " " + "\r\n"] * 3
            lines.append("".join(f"\r {k}%|####     | {k}/1345 [00:10<00:20, 1.50it/s]" for k in range(8)))
            add(
                634,
                f"Epoch: [{epoch}][{number}/1345], lr: {0.02 - 0.0002 * epoch:.5f}\tTime 1.600 (1.500)\t"
                f"Data 0.008 (0.020)\tLoss 4.8 ({5 - 0.04 * epoch:.4f})\tPrec@1 4.688 ({epoch}.500)\t"
                "Prec@5 9.375 (11.250)\tSpeed 40.201 V/s (43.2000) V/s",
            )
        if epoch in tops:
            for number in range(0, 181, 20):
                add(713, f"Val: [{number}/181]\tTime 0.3 (0.3)\tLoss 4.6 (4.6)\tPrec@1 6.2 (6.2)\tPrec@5 20.3 (20.3)")
            top1, top5, class_accuracy = tops[epoch]
            add(731, f"Validation Results: Prec@1 {top1} Prec@5 {top5} Loss 2.1 Time 2.3852 Speed 207.5014 V/s")
            add(741, f"Class Accuracy {class_accuracy}%")
    cut = len(lines) // 2
    for place, text in ((cut, "Epoch: [40][20/1345], lr: 0.01200\tTime 1.2 (1.\n"), (3, "Validation Results: Prec\n")):
        lines.insert(place, text)
    path.write_bytes("".join(lines).encode().replace(b"(conv1)", b"\xff\xfe\x80(conv1)"))
    return 2


PUBLISHED = {  # the best Top-1, Top-5 and class accuracy, its epoch, the last Top-1 and Top-5, and the validated epochs
    "v1": ((53.986, 81.137, 49.71), 79, (53.986, 81.137), range(80)),
    "v2": ((65.98, 89.882, 61.04), 78, (65.779, 89.845), [*range(4, 70, 5), *range(70, 80)]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_log_of_several_megabytes(tmp_path, name):
    """The values and the epochs of validation are those of the published logs."""
    best, epoch, last, validated = PUBLISHED[name]
    tops = {i: (round(best[0] - 1 - (79 - i) / 2, 3), 80.5, 40.25) for i in validated}
    tops[79] = (*last, 60.01)
    tops[epoch] = best
    file = tmp_path / "published.log"
    damaged = write_published(file, tops)
    assert file.stat().st_size > 4e6
    start = time.process_time()
    run = read_run(file)
    seconds = time.process_time() - start
    assert seconds < 1, f"{seconds:.2f} s"
    keys = ("val_top1", "val_top5", "class_accuracy", "epoch")
    assert tuple(run.best[key] for key in keys) == (*best, epoch)
    assert (run.tested[-1]["val_top1"], run.tested[-1]["val_top5"]) == last
    assert [row["epoch"] for row in run.tested] == list(validated) and len(run.rows) == run.epochs == 80
    assert run.rows[3] | {"loss": 4.88, "top1": 3.5, "lr": 0.0194, "time": 1.5} == run.rows[3]
    assert run.rows[3]["clips"] == 64 and run.speed("clips_per_second") == pytest.approx(64 / 1.5)
    assert run.speed("speed") == 43.2 and run.hours == pytest.approx(80 * 68 * 30 / 3600)
    assert len(run.damaged) == damaged and run.damaged[0] == 4


def test_published_lines_are_read(tmp_path):
    stamp = "2021-05-22 17:20:40 "
    file = tmp_path / "RSA.log"
    file.write_text(
        f"{stamp}[05/22 17:20:39][INFO] main.py: 634: Epoch: [0][0/1345], lr: 0.00402\tTime 86.916 (86.916)\t"
        "Data 44.188 (44.188)\tLoss 5.3249 (5.3249)\tPrec@1 0.000 (0.000)\tPrec@5 3.125 (3.125)\t"
        "Speed 1.498 V/s (1.4979) V/s\n"
        f"{stamp}clipping gradient: 123.4 with coef 0.8\n"
        f"{stamp}[05/22 18:15:00][INFO] main.py: 634: Epoch: [0][1340/1345], lr: 0.00402\tTime 1.5 (2.4)\t"
        "Data 0.008 (0.1)\tLoss 4.8 (4.9590)\tPrec@1 4.688 (3.500)\tPrec@5 9.375 (11.250)\tSpeed 43.1 V/s (43.2) V/s\n"
        f"{stamp}[05/22 18:15:09][INFO] main.py: 713: Val: [0/181]\tTime 23.554 (23.5539)\tLoss 4.6837 (4.6837)\t"
        "Prec@1 6.250 (6.250)\tPrec@5 20.312 (20.312)\n"
        f"{stamp}[05/22 18:21:56][INFO] main.py: 731: Validation Results: Prec@1 3.594 Prec@5 13.906 Loss 4.90083 "
        "Time 2.3852 Speed 207.5014 V/s\n"
        f"{stamp}[05/22 18:21:56][INFO] main.py: 741: Class Accuracy 3.22%\n"
    )
    assert read_log(file) == [
        {
            "epoch": 0,
            "lr": 0.00402,
            "loss": 4.959,
            "top1": 3.5,
            "top5": 11.25,
            "val_top1": 3.594,
            "val_top5": 13.906,
            "val_loss": 4.90083,
            "class_accuracy": 3.22,
            "step": 1340,
            "steps": 1345,
            "clips": 64,
            "time": 2.4,
            "wait": 0.1,
            "clips_per_second": 64 / 2.4,
            "speed": 43.2,
            "val_time": 2.3852,
            "val_speed": 207.5014,
            "hours": pytest.approx(1 + 1 / 60 + 17 / 3600),
        }
    ]


STARTED = MIDDAY - timedelta(minutes=30)


@pytest.mark.parametrize(
    "lines, hours",
    [
        ([(STARTED, "dataset:"), (MIDDAY, step(0))], 0.5),
        ([(datetime(2021, 12, 31, 23), step(0)), (datetime(2022, 1, 1, 2), step(1))], 3),
        ([(datetime(2021, 2, 28, 23), step(0)), (datetime(2021, 3, 1, 2), step(1))], 3),
        ([(datetime(2024, 2, 29, 23), step(0)), (datetime(2024, 3, 1, 2), step(1))], 3),
        ([(datetime(2024, 2, 28, 23), step(0)), (datetime(2024, 2, 29, 2), step(1))], 3),
        # the clock goes back for winter
        ([(MIDDAY, step(0)), (STARTED, step(1)), (MIDDAY, step(2))], 0.5),
        # a night between a stop and the resumed run, which logs its settings
        (
            [
                (MIDDAY, step(0)),
                (MIDDAY + timedelta(hours=1), "stopped, 1 epochs done, best Prec@1 3.000; go on with --resume auto"),
                (MIDDAY + timedelta(hours=11), "dataset:"),
                (MIDDAY + timedelta(hours=13), step(1)),
            ],
            3,
        ),
        # a night between a crash and a run that repeats an epoch, without the line of the settings
        (
            [
                (MIDDAY, step(0)),
                (MIDDAY + timedelta(hours=1), step(1)),
                (MIDDAY + timedelta(hours=11), step(1, 0)),
                (MIDDAY + timedelta(hours=12), step(1)),
            ],
            2,
        ),
    ],
)
def test_hours(tmp_path, lines, hours):
    file = tmp_path / "run.log"
    file.write_text("".join(line(message, when) for when, message in lines))
    assert read_run(file).hours == pytest.approx(hours)


def test_a_log_without_time_stamps_has_no_hours(tmp_path):
    file = tmp_path / "run.log"
    file.write_text(step(0) + "\n[13/45 99:00:00] " + step(1) + "\n")
    run = read_run(file)
    assert run.hours is None and [sorted(row) for row in run.rows] == [sorted(run.rows[0])] * 2
    assert "hours" not in run.rows[0]


def test_the_speed_of_a_run_is_the_median_of_its_last_epochs(tmp_path):
    file = tmp_path / "run.log"
    texts = [step(i).replace("(8.0000)", f"({speed})") for i, speed in enumerate((50, 60, 1, 9, 8, 2, 3))]
    file.write_text("\r".join(texts), newline="")
    run = read_run(file)
    assert [row["speed"] for row in run.rows] == [50, 60, 1, 9, 8, 2, 3] and run.speed("speed") == 3


def test_a_repeated_epoch_counts_as_it_was_done_last(tmp_path):
    file = write_run(tmp_path / "run.log", [50, 60, 70])
    with file.open("a") as log:
        log.writelines(map(line, ["dataset:", step(1, loss=0.5), *result(65)]))
    run = read_run(file)
    assert [row["val_top1"] for row in run.rows] == [50, 65, 70] and run.rows[1]["loss"] == 0.5
    with file.open("a") as log:
        log.writelines(map(line, ["dataset:", step(1, 0)]))
    assert [row.get("val_top1") for row in read_log(file)] == [50, None, 70]


@pytest.mark.parametrize(
    "messages, epochs, total",
    [
        ([step(0), step(1, 0)], 1, None),
        ([step(0), step(1)], 2, None),
        ([step(0), step(1, 0), *result(50)], 2, None),
        (["recipe:", "  epochs: 10", "  warmup_epochs: 1", step(2)], 3, 10),
        ([step(0), "epoch 1/80, 12 min, 15 h left, val 41.2 / 70.3, best 41.2"], 1, 80),
        ([step(0), "finished: 1 epochs, best Prec@1 50.000, checkpoints in net_runs/x"], 1, 1),
        (["resumed from x: 40 epochs and 3 steps done, best Prec@1 3.1", step(40, 4, 9)], 40, None),
    ],
)
def test_epochs_done_and_of_how_many(tmp_path, messages, epochs, total):
    file = tmp_path / "run.log"
    file.write_text("".join(map(line, messages)))
    run = read_run(file)
    assert (run.epochs, run.total_epochs, run.damaged) == (epochs, total, [])


def test_the_best_epoch_is_the_first_of_the_highest_and_not_nan(tmp_path):
    run = read_run(write_run(tmp_path / "run.log", [math.nan, 50, 60, 60, math.nan]))
    assert run.best["epoch"] == 2 and math.isnan(run.tested[-1]["val_top1"])
    assert math.isnan(read_run(write_run(tmp_path / "nan.log", [math.nan])).best["val_top1"])


def test_figures_that_are_not_finite_are_read(tmp_path):
    file = tmp_path / "run.log"
    text = step(0).replace("(1.5000)", "(inf)").replace("Speed 8.000", "Speed inf").replace("(40.000)", "(nan)")
    file.write_text(line(text) + line(result(-math.inf)[0]))
    run = read_run(file)
    row = run.rows[0]
    assert (row["loss"], row["val_top1"], run.damaged) == (math.inf, -math.inf, []) and math.isnan(row["top1"])
    assert "clips" not in row and run.speed("clips_per_second") is None and run.speed("speed") == 8


@pytest.mark.parametrize(
    "text",
    [
        "Epoch: [3][",
        "Epoch: [3",
        "Epoch: [3][20/13",
        "Epoch: [3][20/1345], lr: 0.0",
        "Epoch: [\ufffd][20/1345], lr: 0.01",
        step(3)[:-60],
        step(3).replace("(40.000)", "(4o.000)"),
        step(3).replace("[3]", f"[{'3' * 5000}]"),
        "Validation Results: Prec@1 abc",
        "Validation Results: Prec@1 41.2 Prec@5 70",
        "Validation Results: Prec@1 1.2.3 Prec@5 70.0 Loss 1.0",
        "Validation Results: Pr",
        "Class Accuracy abc%",
        "Class Accuracy 3.",
    ],
)
@pytest.mark.parametrize(
    "end", ["\n", "\r\n", "", "\r 45%|####5     | 9/20\n", "[05/22 12:00:00][INFO] main.py:  65: dataset:\n"]
)
def test_damaged_lines_are_counted(tmp_path, text, end):
    """The last end is that of a killed run which was resumed."""
    file = write_run(tmp_path / "run.log", [50])
    before = len(file.read_text().splitlines())
    file.write_text(file.read_text() + line(text).removesuffix("\n") + end)
    assert read_run(file).damaged == [before + 1]


@pytest.mark.parametrize(
    "text",
    [
        "Epoch: [0][10/5005]\tTime 0.5 (0.6)\tLoss 6.9 (6.9)\tAcc@1 0.1 (0.1)",
        "Epoch: [0][  10/5005]  Time 0.5",
        "Epoch: [3] loss 0.4",
        "Epoch: [3/80] loss 0.4",
        "Milestones of Epoch: [20, 40], gamma 0.1",
        "Epoch: 3",
        "Validation Results saved to results.csv",
        "Validation Results: accuracy 0.4",
        "Class Accuracy table:",
        "epoch 3/80, 12 min, 15 h left, val 41.2 / 70.3, best 41.2",
        "Epoch 3:  45%|####5     | 600/1345 [00:10<00:20]",
    ],
)
def test_lines_of_other_programs_are_not_damaged(tmp_path, text):
    file = write_run(tmp_path / "run.log", [50])
    rows = read_log(file)
    file.write_text(file.read_text() + text + "\n" + line(text))
    assert read_run(file).damaged == [] and read_log(file) == rows


def test_progress_bars_stand_before_a_line_or_on_it(tmp_path):
    """Lines that end in \\r alone are lines, but an editor counts only those that end in \\n."""
    file = tmp_path / "run.log"
    bar = "\r 45%|####5     | 600/1345"
    parts = [bar, line(step(0))[:-1], bar, line(result(50)[0])[:-1], "\r", line(result(50)[1]), "Epoch: [1]["]
    file.write_text("".join(parts), newline="")
    run = read_run(file)
    assert [(row["loss"], row["val_top1"], row["class_accuracy"]) for row in run.rows] == [(1.5, 50, 12.34)]
    assert run.damaged == [2]
