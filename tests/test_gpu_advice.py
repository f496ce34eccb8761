"""What the GPU check says about ``auto`` and about the aims, for made-up rows."""

import math

import pytest

from scripts.gpu_advice import (
    COMPILE_NEEDS,
    FRAMES,
    HALF,
    PRECISIONS,
    STAGES,
    TRITON_NEEDS,
    advice,
    aims,
    chosen_path,
    compile_lines,
    fastest,
    network_check,
    number,
    operator_check,
    path_lines,
    pays,
    rate,
)
from scripts.gpu_checks import CHECKS

AGREE = dict.fromkeys((*TRITON_NEEDS, *COMPILE_NEEDS), "agrees")
OPERATOR = {"reference": 1.0, "fused": 4.0, "fused, 64 MB chunks": 5.0, "triton": 8.0}


def operator(speeds: dict[str, float], peak: float = 0.2) -> list[list[str]]:
    """The rows of benchmarks.rsa on a GPU: each path is as fast in all stages, and forward half as fast."""
    return [
        [stage, kind, path, f"{speed * factor:.2f} (1.23 ms)", "0.5", "900 MB" if path == "reference" else f"{peak}"]
        for stage in STAGES
        for kind, factor in (("forward", 0.5), ("training", 1.0))
        for path, speed in speeds.items()
    ]


def networks(shares: dict[str, float], clips: float = 210.5) -> list[list[str]]:
    """The rows of benchmarks.network on a GPU."""
    figures = {name: f"{share:.2f} ({clips} clips/s)" for name, share in shares.items()}
    return [
        [name, "22,034,302", "36.07", figure, "0.80 (900.1 clips/s)", "900", "90"] for name, figure in figures.items()
    ]


def rsanet(**shares: float) -> list[list[str]]:
    rows = {f"rsanet_r50, {path}": share for path, share in shares.items()}
    return networks({"tsn_r50": 1.0, **rows, "sda_tsm_r50": 0.91})


def measured(speeds: dict[str, float] = OPERATOR, **shares: float) -> dict[str, list[list[str]]]:
    """The tables of both precisions. The networks have no rows if there are no ``shares``."""
    tables = {operator_check(precision): operator(speeds) for precision in PRECISIONS}
    if shares:
        names = [network_check("papers' networks", frames, x) for frames in FRAMES for x in PRECISIONS]
        tables |= {name: rsanet(**shares) for name in names}
    return tables


def verdict(results: dict[str, str], tables: dict[str, list[list[str]]]) -> str:
    return path_lines(results, tables)[-1]


def test_the_checks_that_decide_exist():
    assert {*TRITON_NEEDS, *COMPILE_NEEDS} <= {check.name for check in CHECKS}


def test_cells_are_read():
    assert (number("0.75 (212.3 clips/s)"), rate("0.75 (212.3 clips/s)")) == (0.75, 212.3)
    assert number("22,034,302") == 22034302 and number("900 MB") == 900
    assert all(math.isnan(x) for x in (number("failed: 3 x"), number(""), rate("0.75"), rate("")))


def test_the_fastest_path_is_chosen_and_a_tie_keeps_fused():
    assert fastest(OPERATOR) == "triton"
    assert fastest(OPERATOR, without=("triton",)) == "fused, 64 MB chunks"
    assert fastest({"reference": 1.0, "triton": 4.1, "fused": 4.0}) == "fused"
    assert fastest({"fused, 7 MB chunks": 4.0, "fused": 4.0, "fused, 64 MB chunks": 4.05}) == "fused"
    assert fastest({"fused, 7 MB chunks": 4.0, "fused, 64 MB chunks": 4.05}) == "fused, 64 MB chunks"
    assert fastest({"reference": 1.0, "fused": 0.9}) == "reference"
    assert fastest({"triton": 1.0}, without=("triton",)) is None and fastest({}) is None


@pytest.mark.parametrize("check", TRITON_NEEDS)
@pytest.mark.parametrize("result", ["DIFFERS", "failed", "not run", None])
def test_triton_is_advised_only_if_all_its_checks_agree(check, result):
    tables = measured(reference=0.3, fused=0.5, triton=0.8)
    assert verdict(AGREE, tables) == "**`auto` of RSA on this GPU should be triton (half precision and fp32).**"
    results = {name: value for name, value in (AGREE | {check: result}).items() if value}
    lines = path_lines(results, tables)
    assert f"({check}: {result or 'not run'})" in lines[0]
    assert lines[-1] == "**`auto` of RSA on this GPU should be fused (half precision and fp32).**"
    assert [line.split(" | ")[-1] for line in lines if "| res4 |" in line] == ["fused, 64 MB chunks |"] * 2


def test_an_older_gpu_needs_no_bf16():
    results = AGREE | {"bf16 logits of all networks": "does not apply"}
    assert "should be triton" in verdict(results, measured(reference=0.3, fused=0.5, triton=0.8))
    results = AGREE | {"tests of RSA's Triton kernels": "does not apply"}
    assert "should be fused" in verdict(results, measured(reference=0.3, fused=0.5, triton=0.8))


def test_the_network_decides_before_the_operator():
    tables = measured(reference=0.3, fused=0.8, triton=0.6)
    assert chosen_path(tables, "fp32", ())[0] == "fused"  # although the operator is faster in Triton
    tables[network_check("papers' networks", 16, "fp32")] = []
    assert chosen_path(tables, "fp32", ())[1].startswith("rsanet_r50 with 8 frames trains at these shares of TSN: ")
    tables = measured()
    assert chosen_path(tables, "fp32", ())[0] == "triton"
    tables |= {
        name: rsanet(fused=0.5) for name in (network_check("papers' networks", frames, HALF) for frames in FRAMES)
    }
    assert chosen_path(tables, HALF, ())[0] == "triton"  # one path alone cannot be compared


def test_precisions_may_differ():
    tables = measured(reference=0.3, fused=0.5, triton=0.8)
    for frames in FRAMES:
        tables[network_check("papers' networks", frames, "fp32")] = rsanet(reference=0.3, fused=0.6, triton=0.5)
    assert verdict(AGREE, tables) == "**`auto` of RSA on this GPU should be triton in half precision, fused in fp32.**"


def test_missing_rows_change_nothing():
    for tables in ({}, {operator_check("fp32"): []}, {operator_check("fp32"): operator({"triton": 8.0})}):
        assert verdict(AGREE, tables) == "**`auto` of RSA on this GPU stays as it is, because nothing was measured.**"
    rows = [row for row in operator(OPERATOR) if row[0] != "res5"]  # a stage is missing
    assert chosen_path({operator_check("fp32"): rows}, "fp32", ()) == (None, "not measured")
    failed = operator(OPERATOR)
    for row in failed:
        if row[2] == "triton":
            row[3:] = ["failed: OutOfResources: shared memory", "", ""]
    assert chosen_path({operator_check("fp32"): failed}, "fp32", ())[0] == "fused, 64 MB chunks"
    lines = [line for line in path_lines(AGREE, {operator_check("fp32"): failed[::-1]}) if line.startswith("| fp32 ")]
    assert len(lines) == 4 and all(line.endswith("| fused, 64 MB chunks |") and "nan" not in line for line in lines)
    assert {reached for _, _, reached in aims(AGREE, {})} == {None}


def compiled(**rows: tuple[str, str, str]) -> list[list[str]]:
    """Rows of benchmarks.network --compile both. A value is the training share eager and compiled, and the seconds."""
    found = []
    for name, (eager, faster, seconds) in rows.items():
        found.append([name, "1", "1.0", f"{eager} (90.0 clips/s)", "0.8 (90.0 clips/s)", "9", "9", ""])
        found.append(
            [f"{name}, compiled", "1", "1.0", f"{faster} (90.0 clips/s)", "0.9 (90.0 clips/s)", "9", "9", seconds]
        )
    return found


def test_compiling_must_pay_within_an_hour():
    assert pays(1.5, 600) and not pays(1.5, 1300)  # it saves 1200 s of an hour
    assert not pays(1.02, 1) and not pays(math.nan, 1) and not pays(1.5, math.nan)
    rows = compiled(tsn_r50=("1.00", "1.50", "60"), tea_r50=("0.50", "0.50", "60"), gst_r50=("0.60", "1.00", "2000"))
    tables = {"compiled other networks, 8 frames, half precision": rows}
    lines = compile_lines(AGREE, tables)
    assert "| tsn_r50 | 8 frames, half precision | 1.50 | 1.12 | 60 | yes |" in lines
    assert lines[-1] == "**`compile: auto` should be on for tsn_r50; off for tea_r50, gst_r50.**"
    tables["compiled papers' networks, 8 frames, fp32"] = compiled(tsn_r50=("1.00", "1.01", "60"))
    assert compile_lines(AGREE, tables)[-1].startswith(
        "**`compile: auto` should be off for tea_r50, gst_r50; on in some"
    )
    differs = compile_lines(AGREE | {COMPILE_NEEDS[0]: "DIFFERS"}, tables)[-1]
    assert (
        differs.startswith("**`compile: auto` should be off, because") and f"({COMPILE_NEEDS[0]}: DIFFERS)" in differs
    )
    assert "nothing was measured" in compile_lines(AGREE, {})[-1]


def reached(results: dict[str, str], tables: dict[str, list[list[str]]]) -> dict[str, tuple[str, bool | None]]:
    return {aim: (figure, value) for aim, figure, value in aims(results, tables)}


def test_aims_are_those_of_the_advised_path():
    tables = measured(reference=0.3, fused=0.5, triton=0.76)
    found = reached(AGREE, tables)
    assert len(found) == 8 and {value for _, value in found.values()} == {True}
    assert found["RSA at least 5 times the reference, fp32, mean of four stages"][0] == (
        "triton: 8.00 in training (8.00, 8.00, 8.00, 8.00), 4.00 forward"
    )
    found = reached({}, tables)  # triton was not checked, so the aims are those of fused
    values = {aim: value for aim, (_, value) in found.items()}
    assert values.pop("rsanet_r50 trains above 200 clips/s, 16 frames, half precision") is True
    assert [value for aim, value in values.items() if aim.startswith(("RSA at least", "rsanet"))] == [False] * 3
    assert found["rsanet_r50 at 75 % of TSN in training, 16 frames, half precision"] == ("fused: 0.50", False)


def test_an_aim_that_is_just_missed_is_not_reached():
    tables = {operator_check(HALF): operator({"reference": 1.0, "fused": 4.99}, peak=0.26)}
    rows = networks({"tsn_r50": 1.0, "rsanet_r50, reference": 0.3, "rsanet_r50, fused": 0.74, "sda_tsm_r50": 0.89}, 200)
    tables |= {network_check("papers' networks", frames, HALF): rows for frames in FRAMES}
    found = reached(AGREE, tables)
    assert [value for aim, (_, value) in found.items() if HALF in aim] == [False] * 6
    assert [value for aim, (_, value) in found.items() if "fp32" in aim] == [None] * 2


def test_chunks_of_the_operator_are_advised_for_the_network_too():
    tables = measured({"reference": 1.0, "fused": 4.0, "fused, 64 MB chunks": 5.5}, fused=0.76)
    assert verdict({}, tables).startswith("**`auto` of RSA on this GPU should be fused, 64 MB chunks (")
    found = reached({}, tables)
    assert found["rsanet_r50 at 75 % of TSN in training, 16 frames, half precision"] == ("fused: 0.76", True)
    assert found["RSA at least 5 times the reference, fp32, mean of four stages"][1] is True


def test_the_report_names_the_half_precision():
    lines = advice(AGREE, measured(reference=0.3, fused=0.5, triton=0.8), "fp16")
    assert "**`auto` of RSA on this GPU should be triton (fp16 and fp32).**" in lines and HALF not in "\n".join(lines)
    assert "| sda_tsm_r50 at 90 % of TSN in training, 16 frames, fp16 | 0.91 | reached |" in lines
