"""What ``auto`` should be on a GPU, and which aims are reached: pure functions of the rows that were measured.

The rows are those that ``benchmarks.rsa`` and ``benchmarks.network`` print, by the name of their check.
"""

import math
import re

STAGES = ("res2", "res3", "res4", "res5")
HALF = "half precision"  # bf16, or fp16 on an older GPU
PRECISIONS = (HALF, "fp32")
FRAMES = (16, 8)
# The order in which paths of the same speed are preferred. "fused" comes first, because it needs no other package.
PATHS = ("fused", "triton", "reference")
TIE = 0.03  # paths whose speeds differ by less count as equally fast
# Every one of these must agree before auto may become triton. An older GPU has no bf16.
TRITON_NEEDS = ("tests of RSA's Triton kernels", "fp32 logits of all networks", "gradients of the tiny networks")
TRITON_NEEDS += ("bf16 logits of all networks",)
# Every one of these must agree before compile: auto may be on.
COMPILE_NEEDS = ("compiled training of rsanet_tiny", "compiled training of sda_tsm_tiny")
HOUR = 3600.0  # seconds; compiling must pay in a run of this length
GAIN = 1.03  # a compiled network must be at least this many times faster

Rows = list[list[str]]


def operator_check(precision: str) -> str:
    return f"RSA operator in {precision}"


def network_check(kind: str, frames: int, precision: str) -> str:
    """``kind`` is "papers' networks", "other networks", or one of them with "compiled" before it."""
    return f"{kind}, {frames} frames, {precision}"


def number(cell: str) -> float:
    """The first number of a cell such as ``0.75 (212.3 clips/s)``; NaN if it does not begin with one."""
    match = re.match(r"[\d,]*\.?\d+", cell)
    return float(match[0].replace(",", "")) if match else math.nan


def rate(cell: str) -> float:
    """The clips per second of such a cell; NaN if it has none."""
    match = re.search(r"\(([\d.]+) clips/s\)", cell)
    return float(match[1]) if match else math.nan


def speeds(rows: Rows, stage: str, kind: str) -> dict[str, float]:
    """How many times faster than the reference each path was in a stage and a pass, "forward" or "training"."""
    found = {row[2]: number(row[3]) for row in rows if row[:2] == [stage, kind]}
    return {path: speed for path, speed in found.items() if speed > 0}  # not those that failed


def fastest(found: dict[str, float], without: tuple[str, ...] = ()) -> str | None:
    """The fastest path. Of paths that differ by less than ``TIE``, it is the first in the order of ``PATHS``.

    ``fused, 64 MB chunks`` is a form of ``fused``. The result is ``None`` if nothing was measured.
    """
    found = {name: speed for name, speed in found.items() if name.partition(",")[0] not in without}
    if not found:
        return None
    near = [name for name, speed in found.items() if speed > (1 - TIE) * max(found.values())]
    return min(near, key=lambda name: (PATHS.index(name.partition(",")[0]), "," in name, -found[name]))


def obstacle(results: dict[str, str], needed: tuple[str, ...]) -> str | None:
    """The first check of ``needed`` that does not agree, with its result; ``None`` if all agree."""
    for name in needed:
        result = results.get(name, "not run")
        if result != "agrees" and not (result == "does not apply" and name.startswith("bf16 ")):
            return f"{name}: {result}"
    return None


def mean_speed(rows: Rows, path: str, kind: str = "training") -> float:
    """The geometric mean of a path's speed over all stages; NaN if it was not measured in each."""
    found = [speeds(rows, stage, kind).get(path, math.nan) for stage in STAGES]
    return math.exp(sum(map(math.log, found)) / len(found))


def shares(rows: Rows, model: str) -> dict[str, float]:
    """The training speed of a network as a share of TSN's, by RSA's path ("" if it has none). Not compiled."""
    found = {row[0].removeprefix(model).removeprefix(", "): number(row[3]) for row in rows if named(row, model)}
    return {path: share for path, share in found.items() if share > 0 and "compiled" not in path}


def named(row: list[str], model: str) -> bool:
    return row[0].partition(",")[0] == model


def chosen_path(tables: dict[str, Rows], precision: str, without: tuple[str, ...]) -> tuple[str | None, str]:
    """The path that ``auto`` should take in a precision, and the figures that decide.

    The whole network decides, because users run it. If fewer than two of the possible paths were measured in it, the
    operator decides.
    """
    for frames in FRAMES:
        found = shares(tables.get(network_check("papers' networks", frames, precision), []), "rsanet_r50")
        if len(found.keys() - set(without)) > 1:
            shown = ", ".join(f"{path} {share:.2f}" for path, share in found.items())
            return fastest(found, without), f"rsanet_r50 with {frames} frames trains at these shares of TSN: {shown}"
    rows = tables.get(operator_check(precision), [])
    found = {path: mean_speed(rows, path) for path in dict.fromkeys(row[2] for row in rows if len(row) > 2)}
    found = {path: speed for path, speed in found.items() if speed > 0}
    if len(found.keys() - set(without)) < 2:
        return None, "not measured"
    shown = "; ".join(f"{path} {speed:.2f}" for path, speed in found.items())
    return fastest(found, without), f"the operator trains this many times faster than the reference: {shown}"


def path_lines(results: dict[str, str], tables: dict[str, Rows]) -> list[str]:
    """Which path of RSA ``auto`` should take: in each stage, in each precision, and on all GPUs."""
    reason = obstacle(results, TRITON_NEEDS)
    without = ("triton",) if reason else ()
    lines = [f"`triton` is left out, because a check of it does not agree ({reason})."] if reason else []
    lines += ["", "| precision | stage | training, times faster | forward, times faster | best in training |"]
    lines += ["|---|---|---|---|---|"]
    overall = {}
    for precision in PRECISIONS:
        rows = tables.get(operator_check(precision), [])
        for stage in STAGES:
            training, forward = (speeds(rows, stage, kind) for kind in ("training", "forward"))
            shown = ["; ".join(f"{path} {speed:.2f}" for path, speed in x.items()) for x in (training, forward)]
            best = fastest(training, without) or "not measured"
            lines.append(f"| {precision} | {stage} | {shown[0]} | {shown[1]} | {best} |")
        overall[precision] = chosen_path(tables, precision, without)
    lines += ["", *(f"- {name}: {path or 'not known'} ({why})" for name, (path, why) in overall.items())]
    paths = {name: path for name, (path, _) in overall.items() if path}
    if not paths:
        verdict = "stays as it is, because nothing was measured"
    elif len(set(paths.values())) == 1:
        verdict = f"should be {next(iter(paths.values()))} ({' and '.join(paths)})"
    else:
        verdict = "should be " + ", ".join(f"{path} in {name}" for name, path in paths.items())
    return [*lines, "", f"**`auto` of RSA on this GPU {verdict}.**"]


def compile_rows(rows: Rows) -> list[tuple[str, float, float, float]]:
    """(network, speed-up of training, speed-up of testing, seconds of the first calls) of each compiled network."""
    eager = {row[0]: row for row in rows}
    found = []
    for row in rows:
        name = row[0].removesuffix(", compiled")
        if name != row[0] and name in eager:
            gains = [number(row[i]) / number(eager[name][i]) for i in (3, 4)]
            found.append((name, *gains, number(row[-1])))
    return found


def pays(gain: float, seconds: float) -> bool:
    """Whether an hour of training becomes shorter, including the time to compile."""
    return gain >= GAIN and HOUR * (1 - 1 / gain) > seconds


def compile_lines(results: dict[str, str], tables: dict[str, Rows]) -> list[str]:
    """For which networks ``compile: auto`` should be on."""
    reason = obstacle(results, COMPILE_NEEDS)
    lines = ["| network | frames, precision | training, times faster | test | first calls, s | pays in an hour |"]
    lines += ["|---|---|---|---|---|---|"]
    on: dict[str, list[bool]] = {}
    for check, rows in tables.items():
        if check.startswith("compiled "):
            for name, training, test, seconds in compile_rows(rows):
                good = pays(training, seconds)
                on.setdefault(name, []).append(good)
                shown = f"{training:.2f} | {test:.2f} | {seconds:.0f} | {'yes' if good else 'no'}"
                lines.append(f"| {name} | {check.partition(', ')[2]} | {shown} |")
    if not on:
        return ["**`compile: auto` stays as it is on GPUs, because nothing was measured.**"]
    if reason:
        return [*lines, "", f"**`compile: auto` should be off, because a check of it does not agree ({reason}).**"]
    groups = {
        "on for": [name for name, found in on.items() if all(found)],
        "off for": [name for name, found in on.items() if not any(found)],
        "on in some of the rows only for": [name for name, found in on.items() if any(found) and not all(found)],
    }
    shown = "; ".join(f"{words} {', '.join(names)}" for words, names in groups.items() if names)
    return [*lines, "", f"**`compile: auto` should be {shown}.**"]


def aims(results: dict[str, str], tables: dict[str, Rows]) -> list[tuple[str, str, bool | None]]:
    """(aim, figure, whether it is reached or ``None`` if it was not measured). RSA takes the path that is advised."""
    without = ("triton",) if obstacle(results, TRITON_NEEDS) else ()
    paths = {precision: chosen_path(tables, precision, without)[0] for precision in PRECISIONS}
    found = []
    for precision, path in paths.items():
        rows = tables.get(operator_check(precision), [])
        each = [speeds(rows, stage, "training").get(path, math.nan) for stage in STAGES]
        mean, forward = (mean_speed(rows, path, kind) for kind in ("training", "forward"))
        figure = f"{path}: {mean:.2f} in training ({', '.join(map('{:.2f}'.format, each))}), {forward:.2f} forward"
        found.append((f"RSA at least 5 times the reference, {precision}, mean of four stages", figure, mean >= 5, mean))
    rows = tables.get(network_check("papers' networks", 16, HALF), [])
    cells = {row[0]: row[3] for row in rows}
    path = (paths[HALF] or "").partition(",")[0]  # the network has no rows of other chunk sizes
    cell = cells.get(f"rsanet_r50, {path}", "")
    share, clips = number(cell), rate(cell)
    figure = f"{path}: {share:.2f}"
    found.append((f"rsanet_r50 at 75 % of TSN in training, 16 frames, {HALF}", figure, share >= 0.75, share))
    figure = f"{path}: {clips:.0f} clips/s"
    found.append((f"rsanet_r50 trains above 200 clips/s, 16 frames, {HALF}", figure, clips > 200, clips))
    for frames in FRAMES:
        rows = tables.get(network_check("papers' networks", frames, HALF), [])
        share = shares(rows, "sda_tsm_r50").get("", math.nan)
        name = f"sda_tsm_r50 at 90 % of TSN in training, {frames} frames, {HALF}"
        found.append((name, f"{share:.2f}", share >= 0.90, share))
    for precision, path in paths.items():
        peaks = memory(tables.get(operator_check(precision), []), path)
        worst = max(peaks.values()) if len(peaks) == len(STAGES) else math.nan
        figure = f"{path}: {', '.join(f'{stage} {peak:.2f}' for stage, peak in peaks.items())}"
        name = f"RSA's peak memory in training a quarter of the reference's, {precision}, each stage"
        found.append((name, figure, worst <= 0.25, worst))
    return [(name, figure, reached) if value == value else (name, "", None) for name, figure, reached, value in found]


def memory(rows: Rows, path: str | None) -> dict[str, float]:
    """The peak memory of a path in training as a share of the reference's, by stage."""
    found = {row[0]: number(row[5]) for row in rows if row[1:3] == ["training", path] and len(row) > 5}
    return {stage: peak for stage, peak in found.items() if peak == peak}


def advice(results: dict[str, str], tables: dict[str, Rows], half: str) -> list[str]:
    """The lines of the report.

    ``results`` are those of the checks by name, ``tables`` the rows of the benchmarks. ``half`` is the name of the half
    precision that was measured.
    """
    words = {True: "reached", False: "not reached", None: "not measured"}
    lines = ["## What `auto` should be", "", *path_lines(results, tables), "", *compile_lines(results, tables)]
    lines += ["", "## Aims", "", "| aim | figure | result |", "|---|---|---|"]
    lines += [f"| {aim} | {figure} | {words[reached]} |" for aim, figure, reached in aims(results, tables)]
    return [line.replace(HALF, half) for line in lines]
