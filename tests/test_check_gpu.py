"""The GPU check, rehearsed on the CPU: its steps, its report and its last line are right, and it can fail."""

import argparse
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import quick_python
import torch
from toy_run import ROOT

from engine.config import ConfigError
from scripts import check_gpu, compare_devices, gpu_checks
from scripts.gpu_checks import Check, Differs, Missing, NotHere, compare_losses
from scripts.steps import OutOfTime, StepFailed, Steps


def check(monkeypatch, capsys, *words: object) -> tuple[int, list[str]]:
    """Rehearse the check on the CPU; returns the exit status and the printed lines."""
    monkeypatch.setattr(sys, "argv", ["check_gpu", "--device", "cpu", *map(str, words)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    status = check_gpu.main(check_gpu.parse_args())
    return status, capsys.readouterr().out.splitlines()


def test_no_gpu_is_said_in_one_line_and_nothing_is_written(tmp_path):
    path = f"{os.path.dirname(quick_python.executable())}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / "check_gpu.sh"), str(tmp_path / "out.md")],
        env=os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 1 and result.stdout == "" and not list(tmp_path.iterdir())
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"no GPU: PyTorch {torch.__version__} ") and "sees none" in line


def test_a_killed_run_goes_on_and_what_differs_is_said(tmp_path, monkeypatch, capsys):
    """The checks train through main.py. The second one fails, because no difference is within its tolerance."""
    monkeypatch.setitem(gpu_checks.LOSS_TOLERANCE, "bf16", -1)
    out = tmp_path / "new" / "out.md"
    only = ["--only", "resumed training of sda_tsm_tiny", "bf16 training of sda_tsm_tiny"]
    status, lines = check(monkeypatch, capsys, out, *only, "--at_once", 2)
    text = out.read_text()
    assert status == 1
    assert "| killed and resumed training of sda_tsm_tiny | agrees | losses differ by 0 at most;" in text
    assert "| bf16 training of sda_tsm_tiny | DIFFERS | losses differ by " in text
    assert lines[-1].startswith("1 check agrees, 1 does not: bf16 training of sda_tsm_tiny (DIFFERS: losses differ by ")
    assert lines[-1] in text and "- PyTorch: " in text and "a rehearsal on the CPU" in text
    assert sum(line.endswith("training of sda_tsm_tiny ...") for line in lines) == 2  # progress


def program(place, code: str, limit: float = 60) -> str:
    place.steps.python("-c", code, limit=limit)
    return "done"


def raising(error: Exception, _) -> str:
    raise error


CASES = {
    "good": lambda place: "no difference",
    "far": partial(raising, Differs("0.3 | above 0.1")),
    "broken": partial(program, code="print('last words'); raise SystemExit(3)"),
    "slow": partial(program, code="import time; time.sleep(60)", limit=0.3),
    "faulty": lambda place: {}["key"],
    "other GPU": partial(raising, NotHere("this GPU has no bf16")),
    "left": partial(raising, Missing("x is not installed; pip install x")),
    "late": partial(raising, OutOfTime()),
}


@pytest.fixture
def cases(monkeypatch):
    """Replace the real checks by checks that take no time."""
    names = [*CASES, "timed"]
    checks = [Check(name, CASES.get(name, lambda place: "a table"), alone=name == "timed") for name in names]
    monkeypatch.setattr(check_gpu, "CHECKS", checks)
    monkeypatch.setattr("data.toy.draw_small", lambda *_: Path("small.yaml"))


def test_every_outcome_has_its_row_and_its_place_in_the_last_line(tmp_path, monkeypatch, capsys, cases):
    status, lines = check(monkeypatch, capsys, tmp_path / "out.md", "--at_once", 3)
    text = (tmp_path / "out.md").read_text()
    rows = [line.split(" | ")[:3] for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        ["| good", "agrees", "no difference"],
        ["| far", "DIFFERS", "0.3 \\| above 0.1"],
        ["| broken", "failed", "exit status 3"],
        ["| slow", "failed", "no end after 0 s"],
        ["| faulty", "failed", "KeyError: 'key'"],
        ["| other GPU", "does not apply", "this GPU has no bf16"],
        ["| left", "not run", "x is not installed; pip install x"],
        ["| late", "not run", "out of time"],
        ["| timed", "ran", "a table"],
    ]
    assert "## Last lines of: broken\n\n```\nlast words\n```" in text
    assert status == 1 and lines[-1] == (
        "1 check agrees, 4 do not: far (DIFFERS: 0.3 | above 0.1), broken (failed: exit status 3), slow (failed: no "
        "end after 0 s), faulty (failed: KeyError: 'key'), 2 not run: left (x is not installed; pip install x); late "
        "(out of time), 1 not for this machine: other GPU (this GPU has no bf16)"
    )


@pytest.mark.parametrize(
    ("names", "status"), [(("good", "timed"), 0), (("good", "other"), 0), (("good", "left"), 1), (("late",), 1)]
)
def test_status_is_zero_only_if_all_ran_and_agree(tmp_path, monkeypatch, capsys, cases, names, status):
    found, lines = check(monkeypatch, capsys, tmp_path / "out.md", "--only", *names)
    assert found == status and "none differs" in lines[-1]


def test_the_time_for_everything_is_kept(tmp_path, monkeypatch, capsys, cases):
    checks = [Check(name, partial(program, code="import time; time.sleep(60)")) for name in "ab"]
    monkeypatch.setattr(check_gpu, "CHECKS", checks)
    monkeypatch.setattr(check_gpu, "MARGIN", 0)
    start = time.monotonic()
    status, lines = check(monkeypatch, capsys, tmp_path / "out.md", "--minutes", 0.02, "--at_once", 1)
    assert time.monotonic() - start < 20 and status == 1
    assert lines[-1] == "0 checks agree, none differs, 2 not run: a, b (out of time)"


def test_a_step_that_is_stopped_takes_all_it_started_along(tmp_path):
    code = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '60'], start_new_session=True);"
        "open('child', 'w').write(str(child.pid)); print('started', flush=True); time.sleep(60)"
    )
    steps = Steps(tmp_path, 60, threads=1)
    assert steps.python("-c", code, limit=60, kill_at="started") == "started\n"
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    for _ in range(100):  # the process that inherits it may keep it as a zombie
        if not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        raise AssertionError("it still runs")
    with pytest.raises(StepFailed, match="exit status 0 before it printed 'never'"):
        steps.python("-c", "print('ended')", limit=60, kill_at="never")


@pytest.mark.parametrize("given", ["", "/packages/of/mine"])
def test_programs_find_our_packages_and_those_of_the_user(tmp_path, monkeypatch, given):
    monkeypatch.setenv("PYTHONPATH", given)
    output = Steps(tmp_path, 60, threads=1).python("-c", "import sys; print(sys.path[1:3])", limit=60)
    assert output.startswith(f"['{ROOT}', '{given}" if given else f"['{ROOT}', '/") and "''" not in output


def test_a_watched_program_may_take_long_if_it_prints(tmp_path):
    code = "import time\nfor i in range(5): print(i, flush=True); time.sleep(0.7)\nprint('end')"
    seen = []
    output = Steps(tmp_path, 60, threads=1).python("-c", code, limit=2.4, watch=seen.append)
    assert seen[-1] == output == "0\n1\n2\n3\n4\nend\n" and len(seen) > 2
    with pytest.raises(StepFailed, match="no end after 2 s"):
        Steps(tmp_path, 60, threads=1).python("-c", code, limit=2.4)


def test_what_several_checks_need_is_made_once_and_fails_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", quick_python.executable())
    place = gpu_checks.Place("cpu", 1, True, Steps(tmp_path, 60, threads=1), tmp_path / "none.yaml")
    for _ in range(2):
        with pytest.raises(StepFailed) as error:
            place.train("tsn_tiny", "run")
        assert "none.yaml" in error.value.output
    assert len(list(tmp_path.glob("step_*.txt"))) == 1


def test_losses_that_are_no_numbers_or_missing_differ(tmp_path):
    def log(name: str, *losses: str) -> Path:
        lines = [
            f"Epoch: [{epoch}][3/4], lr: 0.02000\tTime 1 (1)\tData 0 (0)\tLoss {loss} ({loss})\tPrec@1 0 (0)\t"
            f"Prec@5 0 (0)\nValidation Results: Prec@1 0 Prec@5 0 Loss {loss} Time 1"
            for epoch, loss in enumerate(losses)
        ]
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    expected = log("expected", "1.4", "1.3")
    assert compare_losses(log("near", "1.4", "1.301"), expected, "fp32").startswith("losses differ by 0.001 at most, ")
    for name, losses in {"far": ("1.4", "1.5"), "nan": ("1.4", "nan"), "short": ("1.4",), "none": ()}.items():
        with pytest.raises(Differs):
            compare_losses(log(name, *losses), expected, "fp32")


def compare(kind: str, *models: str) -> None:
    compare_devices.main(argparse.Namespace(kind=kind, models=models, device="cpu"))


@pytest.mark.parametrize("kind", compare_devices.TOLERANCE)
def test_devices_that_compute_the_same_agree(kind, capsys):
    compare(kind, "tsn_tiny", "rsanet_tiny")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("agrees: largest difference ") and len(lines) == 2 + 3 + 1
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["auto", "reference", "fused"]


def test_devices_are_compared_by_the_program(tmp_path, monkeypatch):
    """The check starts the program, which also refuses a network that does not exist."""
    monkeypatch.setattr("sys.executable", quick_python.executable())
    place = gpu_checks.Place("cpu", 1, True, Steps(tmp_path, 60, threads=1), tmp_path / "none.yaml")
    assert gpu_checks.devices(place, kind="fp32", models=("rsanet_tiny",)).startswith("largest difference ")
    with pytest.raises(StepFailed) as error:
        gpu_checks.devices(place, kind="fp32", models=("rsanet_tin",))
    assert error.value.code == 2 and "unknown model 'rsanet_tin'; did you mean rsanet_tiny?" in error.value.output


@pytest.mark.parametrize("value", [0.9, float("nan")])
@pytest.mark.parametrize("kind", compare_devices.TOLERANCE)
def test_devices_that_compute_something_else_differ(kind, value, monkeypatch):
    """The copy on the device has wrong RSA weights."""

    def spoil(model: torch.nn.Module) -> None:
        for module in model.modules():
            if hasattr(module, "H2"):
                module.H2.weight.data.mul_(1 - value)

    monkeypatch.setattr(compare_devices, "channels_last", spoil)
    with pytest.raises(ConfigError, match=r"DIFFERS: more than .*rsanet_tiny \(reference\) .*, rsanet_tiny \(fused\)"):
        compare(kind, "tsn_tiny", "rsanet_tiny")


def test_the_names_of_checks_are_told_apart_and_unknown_ones_refused(monkeypatch, capsys):
    names = [check.name for check in gpu_checks.CHECKS]
    assert len(set(names)) == len(names)
    with pytest.raises(SystemExit):
        check(monkeypatch, capsys, "--only", "fp32", "fp23")
    assert "--only fp23: no check has it in its name; they are: fp32 training of rsanet_tiny" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(check_gpu, "carry_out_all", lambda *_: pytest.fail("the checks ran"))
    monkeypatch.setattr(sys, "argv", ["check_gpu", "--device", "cpu", str(tmp_path / "file" / "out.md")])
    assert check_gpu.main(check_gpu.parse_args()) == 1
    assert "out.md: cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("function", [partial(gpu_checks.devices, kind="fp32"), gpu_checks.fused_tests])
@pytest.mark.parametrize(
    ("code", "output", "expected"),
    [
        (None, "1\nagrees: 12 passed in 1.0s", "agrees"),
        (1, "| a |\nerror: DIFFERS: 1 failed", "differs"),
        (2, "Traceback\nKeyError: 'x'", "failed"),
    ],
)
def test_what_a_program_says_is_understood(function, code, output, expected, tmp_path, monkeypatch):
    def python(self, *words, **limits):
        if code is not None:
            raise StepFailed(f"exit status {code}", output, code)
        return output

    monkeypatch.setattr(Steps, "python", python)
    place = gpu_checks.Place("cpu", 1, True, Steps(tmp_path, 60, threads=1), tmp_path / "none.yaml")
    if expected == "agrees":
        assert function(place).endswith("12 passed in 1.0s")
    else:
        with pytest.raises(Differs if expected == "differs" else StepFailed, match="1 failed|exit status 2"):
            function(place)


def test_gpus_and_driver_are_named(tmp_path, monkeypatch):
    names = ["NVIDIA X", "NVIDIA X", "NVIDIA Y"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(names))
    monkeypatch.setattr("torch.cuda.get_device_name", names.__getitem__)
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: 91002)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_gpu.why_no_gpu() is None
    assert check_gpu.machine_and_versions("cuda")["driver"] == "unknown, nvidia-smi does not say"
    stub = tmp_path / "nvidia-smi"
    stub.write_text("#!/bin/sh\necho 580.1\necho 580.1\necho 580.1\n")
    stub.chmod(0o755)
    facts = check_gpu.machine_and_versions("cuda")
    assert facts["GPU"] == "2 x NVIDIA X, 1 x NVIDIA Y" and facts["driver"] == "580.1"


@pytest.mark.parametrize(("gigabytes", "clips"), [(139.8, 16), (79.6, 8), (47.5, 4), (23.6, 2), (7.8, 2), (500, 16)])
def test_a_smaller_gpu_gets_fewer_clips(gigabytes, clips, monkeypatch):
    memory = argparse.Namespace(total_memory=int(gigabytes * 2**30))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: memory)
    assert check_gpu.clips_of_a_gpu() == clips


def test_what_a_gpu_lacks_counts_neither_way(tmp_path):
    place = gpu_checks.Place("cuda", 1, False, Steps(tmp_path, 60, threads=1), tmp_path / "none.yaml")
    without = {check.name for check in gpu_checks.CHECKS if "bf16" in check.name or "two NCCL" in check.name}
    rows = [check_gpu.carry_out(check, place) for check in gpu_checks.CHECKS if check.name in without]
    assert len(rows) == 7 and {row.figure for row in rows} == {"this GPU has no bf16", "there is one GPU"}
    assert check_gpu.all_agree(rows) and not list(tmp_path.iterdir())
