"""The measurements of ``scripts.check_gpu`` in the order of their importance. Each runs one of the benchmarks."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from models import list_models

from .gpu_advice import FRAMES, HALF, PRECISIONS, STAGES, network_check, operator_check
from .gpu_checks import Check, Place
from .gpu_record import Table
from .steps import OutOfTime, StepFailed

PAPERS = ("rsanet_r50", "sda_tsm_r50", "sda_tsn_r50", "tsm_r50")
OTHERS = tuple(name for name in list_models(toy=False) if name not in (*PAPERS, "tsn_r50"))
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
CHUNKS = (7, 64, 256, 1024)  # MB, of RSA's fused path
SILENT, COMPILING = 300, 600  # seconds without a line of output; a network prints nothing while it is compiled
OPERATOR_CLIPS = 8  # of 8 frames
# Settings of benchmarks.training without the compiled ones, which have measurements of their own.
SWITCHES = ("channels_last", "precision bf16", "channels_last, bf16", "activation_checkpointing")
SWITCHES += ("batch_size 1 (accumulated)", "ema_decay 0.999", "cudnn_benchmark", "precision tf32", "precision fp16")
SWITCHES += ("all: channels_last, bf16, cudnn_benchmark",)
# In a rehearsal on the CPU.
TINY = ("--size", 32, "--num_segments", 2, "--clips", 2)
NO_MEMORY = ("--memory", "false")  # on a CPU, each peak needs a process of its own


class Measurement(NamedTuple):
    """A benchmark and the networks or stages that it measures.

    ``words`` are its flags on a device. ``rehearsal`` are the items of a rehearsal on the CPU. ``flag`` comes before
    the items. ``rescue`` are the flags that leave out RSA's kernels: an item that ends the program with an error is
    measured once more with them. ``limit`` is the longest time without a line of output, in seconds.
    """

    module: str
    items: tuple[str, ...]
    words: Callable[[Place], tuple]
    rehearsal: tuple[str, ...]
    flag: tuple[str, ...] = ()
    rescue: tuple[str, ...] = ()
    limit: float = SILENT

    def command(self, items: list[str] | tuple[str, ...], words: tuple) -> list[object]:
        return ["-m", self.module, *self.flag, *items, *words]


def measure(place: Place, name: str, measurement: Measurement) -> str:
    """Measure the items that have no rows yet. Rows are in the record as soon as they are printed.

    If the program ends with an error, it is started again with the items after the one that it did not finish.

    Errors: ``StepFailed``, which names these items; ``OutOfTime``, which says how many items have rows.
    """
    items = measurement.items if place.device == "cuda" else measurement.rehearsal
    words = measurement.words(place)
    table = place.record.table(name)
    table.command = " ".join(map(str, ["python", *measurement.command(items, words)]))
    left, errors = [item for item in items if not table.done(item)], []
    try:
        while left:
            error = attempt(place, measurement, table, left, words)
            if error is None:
                break
            lost = next((item for item in left if not table.done(item)), None)
            errors.append((lost or "a row", error))
            if lost is None:
                break
            left = left[left.index(lost) + 1 :]
            try:
                if measurement.rescue:
                    attempt(place, measurement, table, [lost], (*words, *measurement.rescue))
            finally:
                table.failed.append(lost)  # another call measures it again
    except OutOfTime:
        done = sum(table.done(item) for item in items)
        raise OutOfTime(f"out of time: {done} of {len(items)} measured" if done else "out of time") from None
    if errors:
        output = "\n".join(f"{item}:\n{error.output}" for item, error in errors)
        raise StepFailed("; ".join(f"{item}: {error}" for item, error in errors), output)
    return "table below"


def attempt(place: Place, measurement: Measurement, table: Table, items: list[str], words: tuple) -> StepFailed | None:
    """Run the benchmark for ``items``; returns its error, if it has one."""

    def watch(output: str) -> None:
        table.take(output)
        place.record.save()

    command = [*measurement.command(items, words), "--device", place.device]
    try:
        place.steps.python(*command, limit=measurement.limit, watch=watch)
    except StepFailed as error:
        return error
    return None


def format_of(place: Place, precision: str) -> str:
    return place.half if precision == HALF else precision


def operator(precision: str) -> Measurement:
    def words(place: Place) -> tuple:
        dtype = DTYPES[format_of(place, precision)]
        if place.device == "cpu":
            return "--dtype", dtype, "--clips", 1, "--num_segments", 1, "--rounds", 1, "--chunk_mb", 1, *NO_MEMORY
        return "--dtype", dtype, "--clips", OPERATOR_CLIPS, "--rounds", 5, "--chunk_mb", *CHUNKS

    return Measurement("benchmarks.rsa", STAGES, words, ("res5",), ("--stages",), ("--paths", "reference", "fused"))


def networks(
    models: tuple[str, ...],
    precision: str,
    frames: int,
    compiled: bool = False,
    backends: tuple[str, ...] = ("fused", "triton"),
) -> Measurement:
    compiling = ("--compile", "both") if compiled else ()

    def words(place: Place) -> tuple:
        start = "--precision", format_of(place, precision), *compiling
        if place.device == "cpu":
            return *start, *TINY, "--rounds", 1, "--one_by_one", "true"
        return *start, "--num_segments", frames, "--clips", place.clips, "--rounds", 5, "--rsa_backends", *backends

    with_rsa = "rsanet_r50" in models
    tiny = "rsanet_tiny" if with_rsa and not compiled else "tsm_tiny"
    rescue = ("--rsa_backends", "fused") if with_rsa and "triton" in backends else ()
    limit = COMPILING if compiled else SILENT
    return Measurement("benchmarks.network", models, words, (tiny,), rescue=rescue, limit=limit)


def loader_words(place: Place) -> tuple:
    if place.device == "cpu":
        return *TINY, "--videos", 2, "--steps", 2, "--workers", 1, "--pixels", "fast"
    return "--precision", place.half, "--num_segments", 16, "--clips", place.clips


def switch_words(place: Place) -> tuple:
    if place.device == "cpu":
        return *TINY, "--steps", 1, "--only", "channels_last"
    usable = [name for name in SWITCHES if place.bf16 or not ("bf16" in name or "tf32" in name)]
    return "--clips", min(8, place.clips), "--only", *usable


def of_networks(kind: str, models: tuple[str, ...], precision: str, compiled: bool = False) -> dict[str, Measurement]:
    """The measurements of 16 and of 8 frames, or of 8 frames only for compiled networks, because these take long."""
    return {
        network_check(kind, frames, precision): networks(models, precision, frames, compiled)
        for frames in (FRAMES[1:] if compiled else FRAMES)
    }


# They run one by one, after all other checks, and each has its own table.
MEASURED = {
    **{operator_check(precision): operator(precision) for precision in PRECISIONS},
    **of_networks("papers' networks", PAPERS, HALF),
    **of_networks("papers' networks", PAPERS, "fp32"),
    **of_networks("other networks", OTHERS, HALF),
    "training from image files": Measurement(
        "benchmarks.loader", ("rsanet_r50", "tsn_r50"), loader_words, ("rsanet_tiny",)
    ),
    "switches of training": Measurement("benchmarks.training", ("rsanet_r50", "tsn_r50"), switch_words, ("tsn_tiny",)),
    # It takes long, and no check needs it.
    "RSANet by the reference path, 8 frames, half precision": networks(
        ("rsanet_r50",), HALF, 8, backends=("reference",)
    ),
    **of_networks("other networks", OTHERS, "fp32"),
    **of_networks("compiled papers' networks", ("tsn_r50", *PAPERS), HALF, compiled=True),
    **of_networks("compiled papers' networks", ("tsn_r50", *PAPERS), "fp32", compiled=True),
    **of_networks("compiled other networks", OTHERS, HALF, compiled=True),
}
MEASUREMENTS = [
    Check(name, partial(measure, name=name, measurement=measurement), alone=True)
    for name, measurement in MEASURED.items()
]
