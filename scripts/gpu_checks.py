"""The checks of ``scripts.check_gpu``. Each is a function that returns its figure or raises an error."""

import importlib.util
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from engine.log_reader import read_log
from models import list_models

from .gpu_record import Record
from .steps import ROOT, StepFailed, Steps

MODELS = ("rsanet_tiny", "sda_tsm_tiny")
TINY = tuple(list_models(toy=True))
# Dropout and stochastic depth are off, because GPU and CPU draw different random numbers. cuDNN uses the same
# algorithms in each run.
TRAINING = {"epochs": 2, "global_batch_size": 8, "lr": 0.02, "workers": 2, "num_segments": 8, "dropout": 0}
TRAINING |= {"stochastic_depth": 0, "print_every": 1, "pretrained": "none", "cudnn_benchmark": "false"}
# The largest allowed difference of an epoch's mean loss or a validation loss. All losses are about 2.5. On a CPU,
# another memory layout changes them by 0.004, bf16 by 0.016, batch norm over half the clips by 0.04, a 1.5 times higher
# learning rate by 0.05 to 0.09, and another seed by 0.15. In fp16 the loss scaler may skip the first steps. "same"
# means the same arithmetic, except for the order of a GPU's sums.
LOSS_TOLERANCE = {"fp32": 0.02, "compiled": 0.02, "bf16": 0.05, "fp16": 0.1, "same": 0.01}
SCORE_TOLERANCE = 1e-3  # of the largest score
RUN, COMPILED, EXPORT, TEST = 90, 300, 120, 200  # time limits of the steps in seconds


class Differs(Exception):
    """A figure exceeds its tolerance."""


class NotHere(Exception):
    """This machine lacks something that the check needs. The check then counts neither as agreeing nor as differing."""


class Missing(Exception):
    """A package that the check needs is not installed. The message names the remedy."""


@dataclass
class Place:
    """The device on which the checks run, and the data that the checks share."""

    device: str  # "cuda", or "cpu" in a rehearsal
    gpus: int
    bf16: bool
    steps: Steps
    dataset: Path  # YAML
    clips: int = 2  # in a pass of a benchmark
    record: Record | None = None  # the results so far
    shared: dict[object, Future] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    @property
    def half(self) -> str:
        """The 16-bit format of the device."""
        return "bf16" if self.bf16 else "fp16"

    def once(self, key: object, make: Callable[[], object]) -> object:
        """Return or raise the result of ``make``.

        Only the first check that asks for ``key`` calls it; other checks wait.
        """
        with self.lock:
            first = key not in self.shared
            future = self.shared.setdefault(key, Future())
        if first:
            try:
                future.set_result(make())
            except Exception as error:
                future.set_exception(error)
        return future.result()

    def train(self, model: str, name: str, processes: int = 0, kill_at: str | None = None, **flags: object) -> Path:
        """Run main.py, under torchrun if ``processes`` is given; returns the log. Each run is done only once."""
        run = f"{model}_{name}"
        values = TRAINING | {"device": self.device} | flags
        words = [ROOT / "main.py", self.dataset, model, "--run", run]
        words += [word for key, value in values.items() for word in (f"--{key}", value)]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, "--"]
        command = [*(launcher if processes else []), *words]
        limit = COMPILED if "compile" in flags else RUN
        self.once((run, *flags.items()), lambda: self.steps.python(*command, limit=limit, kill_at=kill_at))
        return self.steps.folder / "logs" / f"{run}.log"

    def weights(self, model: str) -> Path:
        """A network trained on the device in fp32."""
        self.train(model, "fp32")
        return self.steps.folder / "net_runs" / f"{model}_fp32" / "resnet_rgb_model_best.pth.tar"


class Check(NamedTuple):
    name: str
    run: Callable[[Place], str]
    alone: bool = False  # true for checks that measure time: no other check runs at the same time


# Training


def compare_losses(found: Path, expected: Path, kind: str, keys: tuple[str, ...] = ("loss", "val_loss")) -> str:
    """The largest difference between two runs' losses, epoch by epoch.

    Errors: ``Differs``.
    """
    a, b = read_log(found), read_log(expected)
    if [row.keys() for row in a] != [row.keys() for row in b]:
        raise Differs(f"{len(a)} epochs in {found.name}, {len(b)} in {expected.name}, or other figures of them")
    gaps = {(row["epoch"], key): abs(row[key] - other[key]) for row, other in zip(a, b, strict=True) for key in keys}
    (epoch, key), gap = max(gaps.items(), key=lambda item: (item[1] != item[1], item[1]))  # NaN is the largest
    limit = LOSS_TOLERANCE[kind]
    where = f", {key} of epoch {epoch}" if gap else ""
    figure = f"losses differ by {gap:.1g} at most{where}; tolerance {limit:g}"
    if not gap <= limit:
        raise Differs(figure)
    return figure


def fp32(place: Place, model: str) -> str:
    """Compare with the same training on the CPU."""
    run, on_cpu = place.train(model, "fp32"), place.train(model, "on_cpu", device="cpu")
    return compare_losses(run, on_cpu, "fp32")


def other_arithmetic(place: Place, model: str, name: str, **flags: object) -> str:
    """Compare with fp32 on the same device."""
    if name == "bf16" and not place.bf16:
        raise NotHere("this GPU has no bf16")
    return compare_losses(place.train(model, name, **flags), place.train(model, "fp32"), name)


def resumed(place: Place, model: str) -> str:
    """Kill a run in the second epoch, continue it with ``--resume auto``, and compare it with the undisturbed run."""
    expected = place.train(model, "fp32")
    place.train(model, "killed", save_every=1, kill_at="Epoch: [1][0/")
    log = place.train(model, "killed", save_every=1, resume="auto")
    if log.read_text(encoding="utf-8").count("Epoch: [0][0/") > 1:
        raise Differs("the run began anew after it was killed")
    return compare_losses(log, expected, "same")


def one_nccl_process(place: Place, model: str) -> str:
    """Compare a run under torchrun with the run without it."""
    return compare_losses(place.train(model, "torchrun", processes=1), place.train(model, "fp32"), "same")


def two_nccl_processes(place: Place, model: str) -> str:
    """Compare two processes of 4 clips with one process that accumulates 2 x 4 clips.

    Batch norm sees the same clips in both; only its running averages differ.
    """
    needs_two_gpus(place)
    one = place.train(model, "accumulated", batch_size=4)
    return compare_losses(place.train(model, "two", processes=2, batch_size=4), one, "same", keys=("loss",))


def joined_batch_norm(place: Place, model: str) -> str:
    """Compare two processes with ``--sync_bn`` with one process that sees all clips at once."""
    needs_two_gpus(place)
    if place.device == "cpu":
        raise NotHere("SyncBatchNorm runs only on GPUs")
    return compare_losses(place.train(model, "joined", processes=2, sync_bn="true"), place.train(model, "fp32"), "fp32")


def needs_two_gpus(place: Place) -> None:
    if place.gpus < 2:
        raise NotHere("there is one GPU")


# Checks after training


def testing(place: Place, model: str) -> str:
    """Compare the scores of test_models.py on the device with those on the CPU, for one checkpoint."""
    weights, scores = place.weights(model), []
    for device in (place.device, "cpu"):
        file = place.steps.folder / f"{model}_tested_on_{device}.npz"
        words = [ROOT / "test_models.py", place.dataset, "--weights", weights, "--device", device, "--workers", 2]
        place.steps.python(*words, "--scores", file, limit=RUN)
        scores.append(np.load(file)["scores"])
    found, expected = scores
    gap = float(np.abs(found - expected).max() / np.abs(expected).max())
    figure = f"scores differ by {gap:.1g} of the largest at most; tolerance {SCORE_TOLERANCE:g}"
    if not gap <= SCORE_TOLERANCE:
        raise Differs(figure)
    return figure


def export(place: Place, model: str) -> str:
    """Export a checkpoint of the device as a .pt2 file. The export compares the file with the network."""
    out = place.steps.folder / f"{model}.pt2"
    output = place.steps.python("-m", "scripts.export", place.weights(model), "--to", out, limit=EXPORT)
    return last_line(output).rpartition("; ")[2]


def devices(place: Place, kind: str, models: tuple[str, ...] = ()) -> str:
    """Compare logits or gradients on the device with those on the CPU."""
    if kind == "bf16" and not place.bf16:
        raise NotHere("this GPU has no bf16")
    words = ["-m", "scripts.compare_devices", *models, "--kind", kind, "--device", place.device]
    try:
        output = place.steps.python(*words, limit=TEST)
    except StepFailed as error:
        figure = last_line(error.output).partition("DIFFERS: ")[2]
        raise (Differs(figure) if figure else error) from error
    return last_line(output).removeprefix("agrees: ")


def kernel_tests(place: Place, file: str, only: str) -> str:
    """Run the repository's tests of RSA's paths on the device."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        raise Missing(f"{missing[0]} is not installed; pip install -r requirements-dev.txt")
    plain = ["-q", "--no-header", "-p", "no:cacheprovider", "-o", "addopts="]  # in one process, on one GPU
    words = ["-m", "pytest", *plain, ROOT / "tests" / file, "-k", only]
    try:
        output = place.steps.python(*words, limit=TEST, cwd=ROOT)
    except StepFailed as error:
        if error.code != 1:  # pytest's status for tests that failed
            raise
        raise Differs(last_line(error.output)) from error
    figure = last_line(output)
    if " passed" not in figure:
        raise NotHere(f"no test ran: {figure}")
    return figure


def triton_tests(place: Place) -> str:
    """Run all tests that need the kernels. Without a GPU, Triton's interpreter runs the kernels."""
    if importlib.util.find_spec("triton") is None:
        raise NotHere("triton is not installed")
    return kernel_tests(place, "test_rsa_triton.py", "not says_why_not and not imports_without")


def fused_tests(place: Place) -> str:
    """Run the tests that have the device in their names."""
    return kernel_tests(place, "test_rsa_fused.py", place.device)


def last_line(output: str) -> str:
    return output.strip().rpartition("\n")[2]


def _of_each_model(form: str, function: Callable[..., str], **settings: object) -> list[Check]:
    return [Check(form.format(model), partial(function, model=model, **settings)) for model in MODELS]


# Checks start in this order, as many at the same time as the cores allow. The longest ones compile and start early.
CHECKS = [
    *_of_each_model("fp32 training of {}", fp32),
    *_of_each_model("compiled training of {}", other_arithmetic, name="compiled", compile="true"),
    *_of_each_model("bf16 training of {}", other_arithmetic, name="bf16", precision="bf16"),
    *_of_each_model("fp16 training of {}", other_arithmetic, name="fp16", precision="fp16"),
    *_of_each_model("killed and resumed training of {}", resumed),
    *_of_each_model("training of {} by one NCCL process", one_nccl_process),
    *_of_each_model("training of {} by two NCCL processes", two_nccl_processes),
    *_of_each_model("training of {} by two NCCL processes with --sync_bn", joined_batch_norm),
    *_of_each_model("testing of {}", testing),
    *_of_each_model("export of {}", export),
    Check("fp32 logits of all networks", partial(devices, kind="fp32")),
    Check("bf16 logits of all networks", partial(devices, kind="bf16")),
    Check("gradients of the tiny networks", partial(devices, kind="gradients", models=TINY)),
    Check("tests of RSA's Triton kernels", triton_tests),
    Check("tests of RSA's fused path", fused_tests),
]
