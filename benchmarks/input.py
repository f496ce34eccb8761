"""Times the input pipeline: ``python -m benchmarks.input [DATASET]``.

It draws videos of 48 JPEG frames of 427x240 px, or uses the training list of a dataset. One core then makes training
clips of RSANet (16 frames, 240x320, crop 224): by the released steps, by decoding alone, and by our datasets from the
folder and from packed files. The ways take turns, four clips at a time. ``--cold`` empties the system's file cache
before each clip, so it also times the disk.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data import DataError, DatasetConfig, TrainDataset, Video, collate, load_dataset_config, read_list
from data.image_file import read_image
from data.modality import RGB
from data.pixels import BILINEAR, FAST, MIRROR, PIXELS, cut, describe
from data.sampling import random_segments
from data.transforms import IMAGENET_MEAN, IMAGENET_STD, multi_scale_crop
from engine.loading import make_loader
from engine.workers import batches

from .measure import machine, medians

ROOT = Path(__file__).parents[1]
SIZE, FRAMES, QUALITY = (427, 240), 48, 90
SEGMENTS, RESIZED, INPUT = 16, (240, 320), 224


def draw_videos(folder: Path, videos: int, size: tuple[int, int] = SIZE) -> Path:
    """A dataset of drawn videos, whose frames have this width and height; returns its YAML.

    Moving waves with noise fill JPEG files as filmed frames do.
    """
    rng, lines = np.random.default_rng(0), []
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    for k in range(videos):
        waves = rng.uniform(0.02, 0.2, (3, 2)) * rng.choice([-1, 1], (3, 2))
        (folder / f"frames/{k}").mkdir(parents=True)
        for number in range(1, FRAMES + 1):
            colours = [128 + 90 * np.sin(a * x + b * y + number / 5) for a, b in waves]
            noisy = np.stack(colours, 2) + rng.normal(0, 12, (*size[::-1], 3))
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            image.save(folder / f"frames/{k}/{number:05d}.jpg", quality=QUALITY)
        lines.append(f"{k} {FRAMES} {k % 2}\n")
    (folder / "list.txt").write_text("".join(lines))
    values = {"name": "drawn", "num_classes": 2, "root": "frames", "train_list": "list.txt", "val_list": "list.txt"}
    (folder / "drawn.yaml").write_text(yaml.safe_dump(values | {"image_tmpl": "{:05d}.jpg"}))
    return folder / "drawn.yaml"


def packed(file: str, folder: Path, *flags: str) -> DatasetConfig:
    """The dataset, packed into ``folder`` by scripts.pack."""
    command = [sys.executable, "-m", "scripts.pack", os.path.abspath(file), "--out", str(folder), *flags]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    (made,) = folder.glob("*.yaml")
    return load_dataset_config(str(made))


class FromFiles(Dataset):
    """Clips that ``make(files, rng)`` makes from the files of 16 frames."""

    def __init__(self, config: DatasetConfig, videos: list[Video], make: Callable):
        self.config, self.videos, self.make = config, videos, make

    def __getitem__(self, place: tuple[int, int]) -> object:
        video, rng = self.videos[place[1]], np.random.default_rng(place)
        folder = os.path.join(self.config.root, video.path)
        numbers = random_segments(video.num_frames, SEGMENTS, rng)
        return self.make([os.path.join(folder, self.config.image_tmpl.format(number)) for number in numbers], rng)


def released_steps(files: list[str], rng: np.random.Generator) -> Tensor:
    """A clip (48, 224, 224) by the released steps. Each makes whole images, and the clip becomes float on the CPU."""
    images = [Image.open(file).convert("RGB") for file in files]
    images = [image.resize(RESIZED[::-1], BILINEAR) for image in images]
    crop = multi_scale_crop(*RESIZED[::-1], INPUT, rng)
    images = [image.crop((crop.x, crop.y, crop.x + crop.width, crop.y + crop.height)) for image in images]
    images = [image.resize((INPUT, INPUT), BILINEAR) for image in images]
    if rng.random() < 0.5:
        images = [image.transpose(MIRROR) for image in images]
    stack = np.concatenate([np.array(image) for image in images], axis=2)  # (H, W, 48)
    clip = torch.from_numpy(stack).permute(2, 0, 1).contiguous().float().div(255)
    for channel, mean, std in zip(clip, IMAGENET_MEAN * SEGMENTS, IMAGENET_STD * SEGMENTS, strict=True):
        channel.sub_(mean).div_(std)
    return clip


def read(files: list[str], _: object) -> list[bytes]:
    return [Path(file).read_bytes() for file in files]


def decode(files: list[str], _: object) -> list[np.ndarray]:
    return [read_image(file) for file in files]


def decode_by_pillow(files: list[str], _: object) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in files]


class Stored(Dataset):
    """The frames of clips from a dataset's source, without crops; if ``bytes_only``, the packed files of the frames."""

    def __init__(self, config: DatasetConfig, videos: list[Video], bytes_only: bool):
        self.source, self.videos, self.bytes_only = config.open_source(), videos, bytes_only

    def __getitem__(self, place: tuple[int, int]) -> list:
        video = self.videos[place[1]]
        numbers = random_segments(video.num_frames, SEGMENTS, np.random.default_rng(place))
        if self.bytes_only:
            return [bytes(content) for _, content in self.source.read(video, sorted(set(numbers)))]
        return self.source.frames(video, numbers)


def ours(config: DatasetConfig, videos: list[Video], pixels: str) -> TrainDataset:
    return TrainDataset(videos, config.open_source(), SEGMENTS, RESIZED, INPUT, "skip", {}, pixels=pixels)


def next_clips(dataset: Dataset, clips: int = 4) -> Callable[[], None]:
    """A function that makes the next clips of the dataset, one after the other, as a loading process does.

    All such functions take the videos in the same order.
    """
    numbers = count()

    def run() -> None:
        for k in islice(numbers, clips):
            item = dataset[k, k % len(dataset.videos)]
            if isinstance(item, DataError):
                raise item

    return run


def one_core(stores: dict[str, DatasetConfig], videos: list[Video], rounds: int) -> None:
    """Print the speed of each way in clips per second, relative to the released steps and to decoding alone."""
    folder = stores["folder"]
    ways = {
        "released steps": FromFiles(folder, videos, released_steps),
        "reading alone": FromFiles(folder, videos, read),
        "decoding alone, Pillow": FromFiles(folder, videos, decode_by_pillow),
        "decoding alone, ours": FromFiles(folder, videos, decode),
    }
    ways |= {f"{way}, {name}": ours(store, videos, way) for way in PIXELS for name, store in stores.items()}
    seconds = medians({name: next_clips(way) for name, way in ways.items()}, rounds, "cpu")
    released, floor = seconds["released steps"], seconds["decoding alone, ours"]
    rows = [[name, f"{released / s:.2f}", f"{s / floor:.2f}"] for name, s in seconds.items()]
    print_table(["one core, files in memory", "times the released speed", "time / decoding alone"], rows)


def stages(config: DatasetConfig, videos: list[Video], rounds: int) -> None:
    """Print the share of each stage in the time of a batch of 4 fast clips that becomes float on the CPU."""
    source, data = config.open_source(), ours(config, videos, FAST)
    files = FromFiles(config, videos, lambda files, _: files)[0, 0]
    frames, rng = source.frames(videos[0], list(range(1, SEGMENTS + 1))), np.random.default_rng(0)
    items = [data[epoch, 0] for epoch in range(4)]
    clips = collate(items)[0]

    def crops() -> None:
        crop = multi_scale_crop(*RESIZED[::-1], INPUT, rng)._replace(mirrored=bool(rng.integers(2)))
        cut(frames, RESIZED[::-1], [crop], INPUT, FAST)

    runs = {"reading": lambda: read(files, None), "reading and decoding": lambda: decode(files, None), "crops": crops}
    runs |= {"4 clips to a batch": lambda: collate(items), "4 clips to float": lambda: RGB.normalise(clips)}
    seconds = medians(runs, rounds, "cpu")
    seconds["decoding"] = seconds.pop("reading and decoding") - seconds["reading"]
    seconds |= {name.removeprefix("4 clips "): seconds.pop(name) / 4 for name in list(seconds) if name.startswith("4 ")}
    total = sum(seconds.values())
    print_table(["stage of a fast clip", "share"], [[name, f"{100 * s / total:.0f} %"] for name, s in seconds.items()])


def loaders(config: DatasetConfig, videos: list[Video], clips: int) -> None:
    """Print the speed of whole loaders with 1 and 2 processes, relative to the released steps with the same number."""
    ways = {"released steps": FromFiles(config, videos, released_steps)}
    ways |= {way: ours(config, videos, way) for way in PIXELS}
    rows = []
    for workers in (1, 2):
        runs = {name: whole_loader(way, workers, clips) for name, way in ways.items()}
        seconds = medians(runs, 3, "cpu", warm_up=1)
        rows += [[name, str(workers), f"{seconds['released steps'] / s:.2f}"] for name, s in seconds.items()]
    print_table(["loader, batches of 4 clips", "processes", "times the released speed"], rows)


def whole_loader(dataset: Dataset, workers: int, clips: int) -> Callable[[], None]:
    places = [(k, k % len(dataset.videos)) for k in range(clips)]
    collate_fn = torch.stack if isinstance(dataset, FromFiles) else collate

    def run() -> None:
        loader = make_loader(dataset, workers, torch.device("cpu"), collate_fn, sampler=places, batch_size=4)
        for _ in batches(loader):
            pass

    return run


def cold(stores: dict[str, DatasetConfig], videos: list[Video], rounds: int) -> None:
    """Print the speed of clips from a disk whose content is not in memory, relative to the folder."""
    rows, folder = [], stores["folder"]
    for what in ("bytes", "decoded frames"):
        runs = {name: next_clips(Stored(store, videos, what == "bytes"), 1) for name, store in stores.items()}
        if what == "bytes":
            runs["folder"] = next_clips(FromFiles(folder, videos, read), 1)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                forget(stores[name])
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        seconds = {name: statistics.median(values) for name, values in times.items()}
        rows += [[what, name, f"{seconds['folder'] / s:.2f}"] for name, s in seconds.items()]
    print_table(["from a cold disk", "store", "times the folder's speed"], rows)


def forget(config: DatasetConfig) -> None:
    """Drop a dataset's files from the system's file cache. If the rights suffice, drop all cached folders too."""
    for folder, _, names in os.walk(config.root):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    if os.access("/proc/sys/vm/drop_caches", os.W_OK):
        Path("/proc/sys/vm/drop_caches").write_text("2")


def print_table(head: list[str], rows: list[list[str]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="a dataset of image folders; default: drawn videos")
    parser.add_argument("--videos", type=int, default=24, help="number of videos (default 24)")
    parser.add_argument("--rounds", type=int, default=24, help="number of turns of each way (default 24)")
    parser.add_argument("--cold", action="store_true", help="time reading from a disk instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="." if args.cold else None) as name:
        folder = Path(name)
        file = args.dataset or str(draw_videos(folder, args.videos))
        config = load_dataset_config(file)
        videos = read_list(config.train_list, config.num_classes)[: args.videos]
        stores = {"folder": config, "packed": packed(file, folder / "jpeg")}
        stores["packed --raw"] = packed(file, folder / "raw", "--raw")
        size = np.mean([len(content) for content in FromFiles(config, videos, read)[0, 0]])
        print(f"{machine('cpu')}; {len(videos)} videos, {size / 1000:.0f} kB a frame; {describe(FAST)}\n")
        if args.cold:
            cold(stores, videos, args.rounds)
        else:
            one_core(stores, videos, args.rounds)
            stages(config, videos, args.rounds)
            loaders(config, videos, args.rounds)


if __name__ == "__main__":
    main()
