"""Packed copies of small datasets, and short ways to read them."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from toy_run import make_dataset, run_inside

from data import FrameSource, Video, load_dataset_config, read_list


def pack(*words: object, cwd: Path, code: int = 0) -> str:
    """What the program prints."""
    result = run_inside("scripts/pack.py", *words, cwd=cwd)
    assert result.returncode == code, result.stdout
    return result.stdout


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def toy(folder: Path, *flags: object, per_class: int = 2) -> tuple[Path, Path]:
    """The toy set and its packed copy, as dataset files."""
    file = make_dataset(folder / "toy", per_class=per_class)
    pack(file, "--workers", 2, "--shard_size", 0.05, *flags, cwd=folder)
    return file, folder / "packed/small.yaml"


def sources(*files: Path) -> tuple[FrameSource, ...]:
    return tuple(load_dataset_config(str(file)).open_source() for file in files)


def videos_of(file: Path, split: str = "val") -> list[Video]:
    config = load_dataset_config(str(file))
    return list(read_list(getattr(config, f"{split}_list"), config.num_classes))


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def write_dataset(folder: Path, lines: str, **settings: object) -> Path:
    """A dataset whose training and validation lists both have these lines."""
    (folder / "list.txt").write_text(lines)
    values = {"name": "own", "num_classes": 2, "root": "frames", "train_list": "list.txt", "val_list": "list.txt"}
    (folder / "own.yaml").write_text(yaml.safe_dump(values | settings))
    return folder / "own.yaml"
