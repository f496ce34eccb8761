"""The measurements of the GPU check: rows are kept at once, a second call goes on, and each benchmark runs."""

import json
import sys
from pathlib import Path

import pytest
import quick_python
import torch

from benchmarks import network
from benchmarks.training import GPU
from models import list_models
from scripts import check_gpu, gpu_measurements
from scripts.gpu_checks import Check, Place
from scripts.gpu_measurements import MEASURED, OTHERS, PAPERS, SWITCHES, Measurement, measure
from scripts.gpu_record import Record, RecordError, Row, Table, fingerprint
from scripts.steps import OutOfTime, StepFailed, Steps

HEAD = "A GPU; 16 clips\n\n| network | share |\n|---|---|\n"
FACTS = {"GPU": "1 x X", "PyTorch": "2", "Triton": "3", "driver": "580", "half precision": "bf16", "code": "1234abcd"}


class FakeSteps(Steps):
    """Programs that print two rows for each item. One can end early, at an item of ``ends``."""

    def __init__(self, folder: Path, ends: dict[str, Exception] | None = None):
        super().__init__(folder, 60, threads=1)
        self.ends, self.calls = ends or {}, []

    def python(self, *words, limit, watch):
        items = [word for word in words if str(word) in "abcd"]
        self.calls.append(" ".join(map(str, words)))
        output = HEAD
        for item in items:
            if item in self.ends and "--safe" not in words:
                watch(output + f"| {item}, half of a ro")
                raise self.ends[item]
            output += f"  round 1 of 3\n| {item}, fused | 0.{len(self.calls)} |\n| {item}, triton | 0.9 |\n"
            watch(output)
        return output + "| geometric mean | 2 |\n"


def place(folder: Path, ends: dict[str, Exception] | None = None, facts: dict[str, str] = FACTS) -> Place:
    record = Record(folder / "out.md", facts, ["timed"], ["timed"])
    return Place("cuda", 1, True, FakeSteps(folder, ends), folder / "none.yaml", 16, record)


TIMED = Measurement("benchmarks.x", tuple("abcd"), lambda place: ("--clips", place.clips), ("a",))


def test_rows_are_in_both_files_as_soon_as_they_are_printed(tmp_path):
    here = place(tmp_path, {"c": OutOfTime()})
    with pytest.raises(OutOfTime, match=r"out of time: 2 of 4 measured"):
        measure(here, "timed", TIMED)
    assert list(json.loads((tmp_path / "out.json").read_text())["tables"]["timed"]["items"]) == ["a", "b"]
    text = (tmp_path / "out.md").read_text()
    assert "| b, triton | 0.9 |" in text and "half of a ro" not in text and "round" not in text
    assert "## Timed\n\n`python -m benchmarks.x a b c d --clips 16`\n\nA GPU; 16 clips\n\n| network | share |" in text
    assert "| timed | not run | not reached yet | 0 |" in text and "The check has not ended." in text
    here = place(tmp_path, {"a": OutOfTime()})
    with pytest.raises(OutOfTime, match=r"out of time$"):
        measure(here, "timed", TIMED)


def test_a_second_call_measures_what_is_missing(tmp_path):
    with pytest.raises(OutOfTime):
        measure(place(tmp_path, {"c": OutOfTime()}), "timed", TIMED)
    here = place(tmp_path)
    here.record.resume([], ["timed"])
    assert measure(here, "timed", TIMED) == "table below"
    assert here.steps.calls == ["-m benchmarks.x c d --clips 16 --device cuda"]
    table = here.record.tables["timed"]
    assert [row[0] for row in table.rows][::2] == ["a, fused", "b, fused", "c, fused", "d, fused"]
    assert "geometric mean" not in str(table)
    measure(here, "timed", TIMED)
    assert len(here.steps.calls) == 1  # nothing is missing


def test_rows_of_other_code_are_not_continued(tmp_path):
    with pytest.raises(OutOfTime):
        measure(place(tmp_path, {"c": OutOfTime()}), "timed", TIMED)
    here = place(tmp_path, facts=FACTS | {"code": "other"})
    here.record.resume([], ["timed"])
    measure(here, "timed", TIMED)
    assert here.steps.calls == ["-m benchmarks.x a b c d --clips 16 --device cuda"]


def test_an_item_that_ends_the_program_does_not_stop_the_others(tmp_path):
    here = place(tmp_path, {"b": StepFailed("exit status 1", "out of memory", 1)})
    with pytest.raises(StepFailed, match=r"^b: exit status 1$") as error:
        measure(here, "timed", TIMED)
    assert error.value.output == "b:\nout of memory"
    assert [call.split()[2] for call in here.steps.calls] == ["a", "c"]
    assert list(here.record.tables["timed"].items) == ["a", "c", "d"]
    here.steps.ends = {}
    measure(here, "timed", TIMED)  # as in a second call
    assert here.steps.calls[-1].split()[2:-4] == ["b"]


def test_an_item_is_measured_without_the_kernels_that_end_its_program(tmp_path):
    here = place(tmp_path, {"b": StepFailed("exit status 1", "illegal memory access", 1)})
    measurement = TIMED._replace(rescue=("--safe",))
    with pytest.raises(StepFailed, match=r"^b: exit status 1$"):
        measure(here, "timed", measurement)
    assert here.steps.calls[1] == "-m benchmarks.x b --clips 16 --safe --device cuda"
    table = here.record.tables["timed"]
    assert list(table.items) == ["a", "b", "c", "d"] and not table.done("b")
    here.steps.ends = {}
    measure(here, "timed", measurement)
    assert here.steps.calls[-1] == "-m benchmarks.x b --clips 16 --device cuda" and table.done("b")


def test_a_row_that_says_failed_is_measured_again():
    table = Table()
    table.take("| stage | path | speed |\n|---|---|---|\n| res2 | triton | failed: x |\n| res3 | triton | 2.0 |\n")
    assert [table.done(item) for item in ("res2", "res3", "res4")] == [False, True, False]


def resumed(folder: Path, facts: dict[str, str] = FACTS, again: tuple[str, ...] = ()) -> list[str]:
    record = Record(folder / "out.md", facts, list("abcdt"), [])
    record.resume(list(again), ["t"])
    return list(record.rows)


def test_good_results_are_kept_unless_the_code_has_changed(tmp_path):
    record = Record(tmp_path / "out.md", FACTS, list("abcdt"), [])
    assert resumed(tmp_path) == []  # there is no file yet
    for name, result in zip("abcdt", ("agrees", "DIFFERS", "not run", "does not apply", "ran"), strict=True):
        record.add(Row(name, result, "", 1))
    assert resumed(tmp_path) == ["a", "d", "t"]
    assert resumed(tmp_path, again=("d", "t")) == ["a"]
    changed = FACTS | {"code": "other", "driver": "581"}
    assert resumed(tmp_path, changed) == ["t"]
    other = Record(tmp_path / "out.md", changed, list("abcdt"), [])
    other.resume([], ["t"])
    assert "- measured with other code: t\n" in other.report("")


def test_results_of_another_gpu_are_refused(tmp_path):
    Record(tmp_path / "out.md", FACTS, ["a"], []).save()
    with pytest.raises(
        RecordError, match=r"out.json: GPU was 1 x X and is now 1 x Y; leave --resume out, or name anot"
    ):
        resumed(tmp_path, FACTS | {"GPU": "1 x Y"})
    (tmp_path / "out.json").write_text("[1, 2")
    with pytest.raises(RecordError, match=r"out.json: cannot be continued \(JSONDecodeError"):
        resumed(tmp_path)
    (tmp_path / "out.json").write_text('{"facts": {}, "rows": [{"x": 1}]}')
    with pytest.raises(RecordError, match=r"out.json: cannot be continued \(TypeError"):
        resumed(tmp_path)


def call(monkeypatch, capsys, *words: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["check_gpu", "--device", "cpu", *map(str, words)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    status = check_gpu.main(check_gpu.parse_args())
    return status, "".join(capsys.readouterr())


def test_the_program_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    runs, late = [], ["a", "b"]

    def run(name):
        def check(place):
            runs.append(name)
            if name in late:
                raise OutOfTime
            return "fine"

        return check

    monkeypatch.setattr(check_gpu, "CHECKS", [Check(name, run(name), alone=name == "c") for name in "abc"])
    monkeypatch.setattr("data.toy.draw_small", lambda *_: Path("small.yaml"))
    out = tmp_path / "out.md"
    status, text = call(monkeypatch, capsys, out)
    assert status == 1 and "3 checks and measurements; this takes at most 90 minutes (--minutes)" in text
    assert "The same command with --resume goes on with what was not run.\n" in text
    late.clear()
    status, text = call(monkeypatch, capsys, out, "--resume", "--minutes", 3)
    assert status == 0 and runs == ["a", "b", "c", "a", "b"]
    assert "2 checks and measurements, 1 are kept; this takes at most 3 minutes" in text and "goes on" not in text
    assert "| c | ran | fine |" in out.read_text()
    status, text = call(monkeypatch, capsys, out, "--resume", "--again", "c")
    assert status == 0 and runs[5:] == ["c"]
    out.with_suffix(".json").write_text("{}")
    status, text = call(monkeypatch, capsys, out, "--resume")
    assert status == 1 and text.startswith("error: ") and "out.json: cannot be continued" in text
    for words in (["--again", "c"], ["--resume", "--again", "x"]):
        with pytest.raises(SystemExit):
            call(monkeypatch, capsys, out, *words)


def test_the_fingerprint_changes_with_the_code(tmp_path, monkeypatch):
    for room in ("ops", "data/toy_something"):
        (tmp_path / room).mkdir(parents=True)
    monkeypatch.setattr("scripts.gpu_record.ROOT", tmp_path)
    nothing, found = fingerprint(), []
    for name in ("ops/x.py", "ops/x.txt", "data/toy_something/x.yaml"):
        (tmp_path / name).write_text("1")
        found.append(fingerprint())
    assert len({*found}) == 1 and found[0] != nothing
    (tmp_path / "ops/x.py").write_text("2")
    assert fingerprint() != found[0]


def test_every_network_and_switch_is_measured():
    assert {*PAPERS, *OTHERS, "tsn_r50"} == set(list_models(toy=False))
    assert {"plain", *SWITCHES} == {name for name in GPU if "compile" not in name}
    places = [Place(device, 1, bf16, None, Path(), 16) for device in ("cpu", "cuda") for bf16 in (True, False)]
    for measurement in MEASURED.values():
        for here in places:
            words = list(map(str, measurement.words(here)))
            assert here.bf16 or not any("bf16" in word or "bfloat16" in word for word in words), words


REHEARSED = [
    "RSA operator in fp32",
    "papers' networks, 16 frames, half precision",
    "other networks, 8 frames, fp32",
    "training from image files",
]


@pytest.mark.parametrize("name", REHEARSED)
def test_benchmarks_run_on_the_cpu(tmp_path, monkeypatch, name):
    monkeypatch.setattr("sys.executable", quick_python.executable())
    record = Record(tmp_path / "out.md", FACTS, [name], [name])
    here = Place("cpu", 1, True, Steps(tmp_path, 100, threads=1), tmp_path / "none.yaml", 2, record)
    (check,) = (check for check in gpu_measurements.MEASUREMENTS if check.name == name)
    assert check.alone and check.run(here) == "table below"
    table = record.tables[name]
    assert all(table.done(item) for item in MEASURED[name].rehearsal) and table.about.startswith("CPU, 1 threads")
    assert all(len(row) == len(table.head) for row in table.rows)
    if name.startswith("RSA"):
        paths = [row[2] for row in table.rows if row[:2] == ["res5", "training"]]
        assert paths == ["reference", "fused", "fused, 1 MB chunks"]
    elif name.startswith("training"):
        (row,) = table.rows
        assert row[:3] == ["rsanet_tiny", "fast", "1"] and all(float(row[i]) > 0 for i in (3, 4, 6, 7))
    else:
        assert [row[0].partition("_")[0] for row in table.rows] == [
            "tsn",
            MEASURED[name].rehearsal[0].partition("_")[0],
        ]
    assert f"\n{table}\n" in (tmp_path / "out.md").read_text()


def test_compiled_networks_run_on_the_cpu(tmp_path, monkeypatch, capsys):
    """The backend only traces, because generating code takes minutes."""
    compiled, trace = [], torch.nn.Module.compile
    monkeypatch.setattr("torch.nn.Module.compile", lambda x: compiled.append(x.arch) or trace(x, backend="eager"))
    measurement = MEASURED["compiled other networks, 8 frames, half precision"]
    words = measurement.words(Place("cpu", 1, True, None, tmp_path / "none.yaml"))
    command = [*measurement.rehearsal, *words, "--device", "cpu", "--keep_freed_memory", "false"]
    monkeypatch.setattr(sys, "argv", ["benchmarks.network", *map(str, command)])
    network.main()
    table = Table()
    table.take(capsys.readouterr().out)
    assert [row[0] for row in table.rows] == ["tsn_tiny", "tsm_tiny", "tsm_tiny, compiled"]
    assert [row[-1] for row in table.rows][:2] == ["", ""] and float(table.rows[2][-1]) >= 0
    assert compiled == ["tsm_tiny"] and ", bf16, channels_last" in table.about
