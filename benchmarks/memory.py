"""Memory of the loading processes over epochs of a long list: ``python -m benchmarks.memory``.

The training loader of main.py reads clips of one small frame from 200,000 videos. It does so in two new processes. One
has the list as it is (``arrays``: data.VideoList), and the other has a Python list of its videos (``tuples``). The
memory of the main process and of all loading processes is measured several times in each epoch. A proportional set size
counts 1/k of a page that k processes share, so the sum over the processes is the memory that all of them take. Files
such as PyTorch's libraries are left out, because other programs may share them. The unique set size of a loading
process is the memory that it shares with no other process. Linux only.
``python -m figs.draw_memory`` draws the samples.
"""

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from data import DatasetConfig
from engine.batch import BatchPlan
from engine.config import load_recipe
from engine.loading import training_data
from engine.workers import batches

from .measure import machine

FORMS = ("arrays", "tuples")
SMALL = {"num_segments": 1, "train_resize": None, "input_size": 32, "val_resize": None, "val_crop": 32}
CLASSES, FRAMES, SIDE, BATCH = 174, 3, 32, 100


class Sample(NamedTuple):
    """Memory in MB after ``epochs`` epochs. ``worker`` is the mean over the loading processes."""

    form: str
    epochs: float
    total: float  # proportional set sizes of the main process and all loading processes, without files
    main: float  # unique set size
    worker: float  # unique set size


def make_dataset(folder: Path, videos: int) -> None:
    """A few frame folders, and a list with ``videos`` different paths, which are links to these folders."""
    rng, side = np.random.default_rng(0), math.ceil(math.sqrt(videos))
    for kind in range(8):
        (folder / f"frames/{kind}").mkdir(parents=True)
        for number in range(1, FRAMES + 1):
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"frames/{kind}/{number:05d}.jpg")
    (folder / "all").mkdir()
    for i in range(side):
        (folder / f"all/{i:03d}").symlink_to(folder / f"frames/{i % 8}")
        (folder / f"{i:03d}").symlink_to(folder / "all")
    lines = [f"{i // side:03d}/{i % side:03d} {FRAMES} {i % CLASSES}\n" for i in range(videos)]
    (folder / "train.txt").write_text("".join(lines))
    (folder / "val.txt").write_text(f"frames/0 {FRAMES} 0\n")


def described(folder: Path) -> DatasetConfig:
    """The dataset of ``make_dataset``."""
    return DatasetConfig("long", CLASSES, str(folder), str(folder / "train.txt"), str(folder / "val.txt"), "{:05d}.jpg")


def measure(dataset: DatasetConfig, form: str, workers: int, epochs: int, samples: int) -> Iterator[Sample]:
    """One sample after the first batch, and up to ``samples`` of each epoch, of which the last is at its end."""
    recipe = load_recipe("tsn_r50", "toy_something", **SMALL, workers=workers, seed=0)
    loader, _ = training_data(dataset, recipe, BatchPlan(BATCH), torch.device("cpu"))
    if form == "tuples":
        loader.dataset.videos = list(loader.dataset.videos)
    sampler = loader.batch_sampler
    for epoch in range(epochs):
        sampler.epoch = epoch
        for step, _ in enumerate(batches(loader), start=1):
            before, now = (samples * done // sampler.steps for done in (step - 1, step))
            if now > before or epoch + step == 1:
                (main, own), *others = [memory(pid) for pid in ("self", *(child.pid for child in active_children()))]
                total, unique = (sum(sizes) for sizes in zip(*others, strict=True))
                yield Sample(form, epoch + step / sampler.steps, main + total, own, unique / len(others))
        print(f"  {form}: epoch {epoch + 1} of {epochs}", file=sys.stderr, flush=True)


def memory(pid: int | str) -> tuple[float, float]:
    """The proportional set size of a process without files, and its unique set size, in MB."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        fields[name] = int(size) * 1024 / 1e6
    return fields["Pss_Anon:"] + fields["Pss_Shmem:"], fields["Private_Clean:"] + fields["Private_Dirty:"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--videos", type=int, default=200_000, metavar="N", help="lines of the list (default 200000)")
    parser.add_argument("--workers", type=int, default=8, metavar="W", help="loading processes (default 8)")
    parser.add_argument("--epochs", type=int, default=3, metavar="E", help="default 3")
    parser.add_argument("--samples", type=int, default=20, metavar="S", help="of each epoch (default 20)")
    parser.add_argument("--out", default="benchmarks/memory.csv", metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        form, folder = args.measure
        print(json.dumps(list(measure(described(Path(folder)), form, args.workers, args.epochs, args.samples))))
        return
    again = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", *sys.argv[1:], "--measure"]
    samples = {}
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder), args.videos)
        for form in FORMS:
            rows = json.loads(subprocess.run([*again, form, folder], stdout=subprocess.PIPE, check=True).stdout)
            samples[form] = [Sample(*row) for row in rows]
    with open(args.out, "w", newline="", encoding="utf-8") as file:
        rows = [[f"{x:.3f}" if isinstance(x, float) else x for x in row] for form in FORMS for row in samples[form]]
        csv.writer(file).writerows([Sample._fields, *rows])
    print(f"{machine('cpu')}; {args.videos} videos, {args.workers} loading processes, {args.epochs} epochs\n")
    ends = [f"epoch {epoch + 1}" for epoch in range(args.epochs)]
    print(f"| list | MB of | {' | '.join(['first batch', *ends])} |\n|---|---|{'---|' * (args.epochs + 1)}")
    for form, rows in samples.items():
        for field, name in (("worker", "one loading process, alone"), ("total", "all processes")):
            shown = [rows[0], *(row for row in rows if row.epochs.is_integer())]
            cells = " | ".join(f"{getattr(row, field):.0f}" for row in shown)
            print(f"| {form} | {name} | {cells} |")


if __name__ == "__main__":
    main()
