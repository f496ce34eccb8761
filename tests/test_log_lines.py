"""The log lines that hold figures have the published form, and reading them gives what was written."""

import math

import pytest

from engine.log_lines import Meter, result_lines, training_line, validation_line
from engine.log_reader import read_log

NAN = math.nan


def meter(value: float, average: float) -> Meter:
    """A meter with this last value and average."""
    found = Meter()
    found.update(2 * average - value)
    found.update(value)
    return found


def test_lines_have_the_published_form():
    """The lines of RSA's released log, character by character."""
    times, waits, speed = meter(86.916, 86.916), meter(44.188, 44.188), meter(1.4979, 1.4979)
    now = (5.3249, 0.0, 3.125)
    assert training_line(0, 0, 1345, 0.00402, now, now, times, waits, speed) == (
        "Epoch: [0][0/1345], lr: 0.00402\tTime 86.916 (86.916)\tData 44.188 (44.188)\tLoss 5.3249 (5.3249)\t"
        "Prec@1 0.000 (0.000)\tPrec@5 3.125 (3.125)\tSpeed 1.498 V/s (1.4979) V/s"
    )
    assert validation_line(0, 181, (4.6837, 6.25, 20.3125), (4.6837, 6.25, 20.3125), meter(23.5539, 23.5539)) == (
        "Val: [0/181]\tTime 23.554 (23.5539)\tLoss 4.6837 (4.6837)\tPrec@1 6.250 (6.250)\tPrec@5 20.312 (20.312)"
    )
    result = {"top1": 3.594, "top5": 13.906, "loss": 4.90083, "class_accuracy": 3.22}
    assert result_lines(result, 2.3852, 207.5014).splitlines() == [
        "Validation Results: Prec@1 3.594 Prec@5 13.906 Loss 4.90083 Time 2.3852 Speed 207.5014 V/s",
        "Class Accuracy 3.22%",
    ]


def test_a_line_tells_a_step_from_the_epoch_so_far():
    line = training_line(3, 7, 9, 0.5, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), meter(1, 2), meter(3, 4), meter(5, 6))
    for part in ("Loss 1.0000 (4.0000)", "Prec@1 2.000 (5.000)", "Prec@5 3.000 (6.000)", "Time 1.000 (2.000)"):
        assert part in line
    assert "[3][7/9], lr: 0.50000" in line and "Data 3.000 (4.000)" in line and "Speed 5.000 V/s (6.0000) V/s" in line


@pytest.mark.parametrize("top5", [81.25, NAN])
def test_what_is_written_is_read(tmp_path, top5):
    """Two epochs with the other output of a published log. The second epoch is resumed and has no validation.

    A step computes for 0.25 s at 16 videos/s, so it has 4 clips, and the mean time of a step is 0.25 s.
    """
    meters = meter(0.5, 0.25), meter(0.25, 0.125), meter(16, 8)
    lines = []
    for epoch, steps in ((0, (0, 1)), (1, (0, 1, 1))):
        for k, step in enumerate(steps):
            so_far = (2.0 - 0.25 * k, 12.5 + k, top5)
            lines.append(training_line(epoch, step, 2, 0.02, (9.0, 1.0, top5), so_far, *meters))
            lines.append("clipping gradient: 123.4 with coef 0.8")
        if epoch == 0:
            lines.append(validation_line(0, 3, (8.0, 2.0, top5), (7.0, 3.0, top5), meters[0]))
            result = {"top1": 43.75, "top5": top5, "loss": 1.40625, "class_accuracy": 41.5}
            lines += result_lines(result, 0.5, 32).splitlines()
    file = tmp_path / "run.log"
    speed = {"step": 1, "steps": 2, "time": 0.25, "wait": 0.125, "speed": 8.0, "clips": 4, "clips_per_second": 16.0}
    speed["hours"] = 0.0
    for start in ("[05/22 17:20:39][INFO] main.py:  63: ", "2021-05-22 17:20:40 [05/22 17:20:39][INFO] main.py: 634: "):
        file.write_text("".join(f"{start}{line}\n" for line in lines))
        assert read_log(file) == [
            pytest.approx(row, nan_ok=True)
            for row in (
                {
                    "epoch": 0,
                    "lr": 0.02,
                    "loss": 1.75,
                    "top1": 13.5,
                    "top5": top5,
                    "val_top1": 43.75,
                    "val_top5": top5,
                    "val_loss": 1.40625,
                    "class_accuracy": 41.5,
                    "val_time": 0.5,
                    "val_speed": 32.0,
                }
                | speed,
                {"epoch": 1, "lr": 0.02, "loss": 1.5, "top1": 14.5, "top5": top5} | speed,
            )
        ]
