"""``toy_something``: short clips drawn by code, in pairs of classes that differ only in the order of their frames.

A clip of a pair's second class is a clip of the first class played backwards. A single frame therefore shows the pair
but not the class, and a model that averages per-frame scores cannot exceed 50 %.
"""

import shutil
import tempfile
from math import cos, pi, sin
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw
from tqdm import tqdm

NAME = "toy_something"
SIZE = 48  # px
OVERSAMPLE = 2  # frames are drawn larger and then reduced; a motion of less than a pixel is then visible
# Multiples of 8. Training never sees the last n % T frames, so other lengths would give away the order of the frames.
LENGTHS = (24, 32)
TRAIN_PER_CLASS, VAL_PER_CLASS = 130, 30
SEED = 2021

# class name -> (motion, played backwards)
MOTIONS = {
    "Moving something and something away from each other": ("apart", False),
    "Moving something and something closer to each other": ("apart", True),
    "Moving something away from the camera": ("closer", True),
    "Moving something closer to the camera": ("closer", False),
    "Moving something down": ("down", False),
    "Moving something from left to right": ("right", False),
    "Moving something from right to left": ("right", True),
    "Moving something up": ("down", True),
    "Something appearing": ("appear", False),
    "Something disappearing": ("appear", True),
    "Turning something clockwise": ("turn", False),
    "Turning something counterclockwise": ("turn", True),
}


def draw_once(folder: Path, categories: list[str]) -> None:
    """Draw the set into ``folder`` unless the folder exists. ``categories`` are the class names in label order.

    The set is drawn into a temporary folder, which is renamed when it is complete. A folder that exists is therefore
    complete.
    """
    if folder.exists():
        return
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        total = (TRAIN_PER_CLASS + VAL_PER_CLASS) * len(categories)
        print(f"drawing {NAME}: {total} videos of {SIZE} px into {folder}", flush=True)
        with tqdm(total=total, unit="video", disable=None) as bar:
            for split, per_class in (("train", TRAIN_PER_CLASS), ("val", VAL_PER_CLASS)):
                _draw_split(part, split, categories, per_class, "{:05d}", (SEED,), bar.update)
        part.chmod(0o755)
        part.rename(folder)
    except OSError:
        if not folder.exists():  # another process may have finished first
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def draw_small(folder: Path, categories: list[str], per_class: int) -> Path:
    """Draw ``per_class`` training and ``per_class`` validation videos of each class; returns the YAML file."""
    for split in ("train", "val"):
        _draw_split(folder, split, categories, per_class, "video {}", ())
    config = {"name": "small", "num_classes": len(categories), "root": "frames", "train_list": "train.txt"}
    config |= {"val_list": "val.txt", "image_tmpl": "{:05d}.jpg", "categories": categories}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def _draw_split(folder, split, categories, per_class, form, seed, done=lambda: None) -> None:
    """Draw the frame folders of a split, named by ``form``, and its list file. ``done`` is called after each video."""
    lines = []
    for i in range(per_class * len(categories)):
        label = i % len(categories)
        frames = draw_video(categories[label], np.random.default_rng((*seed, split == "val", i)))
        path = f"{split}/{form.format(i)}"
        _save(frames, folder / "frames" / path)
        lines.append(f"{path} {len(frames)} {label}\n")
        done()
    (folder / f"{split}.txt").write_text("".join(lines))


def draw_video(category: str, rng: np.random.Generator) -> list[Image.Image]:
    """The frames of one random video of a class."""
    motion, backwards = MOTIONS[category]
    n = int(rng.choice(LENGTHS))
    scene = _Scene(rng)
    frames = [scene.draw(motion, i / (n - 1)) for i in range(n)]
    return frames[::-1] if backwards else frames


class _Scene:
    """One bright object (two for "apart") on a plain dark background. Coordinates are from 0 to 1 across the frame."""

    def __init__(self, rng: np.random.Generator):
        self.background = rng.integers(0, 80, 3).astype(float)
        self.colours = [rng.integers(150, 256, 3) for _ in range(2)]
        self.corners = [int(rng.choice([3, 4, 5, 32])) for _ in range(2)]
        self.radius = rng.uniform(0.14, 0.18)
        self.centre = rng.uniform(0.35, 0.65, 2)
        self.angle = rng.uniform(0, 2 * pi)
        self.reach = rng.uniform(0.22, 0.32)  # half of the distance that a moving object covers
        self.turn = rng.uniform(0.6, 0.9) * pi

    def draw(self, motion: str, s: float) -> Image.Image:
        """The frame at time s in [0, 1]."""
        image = Image.new("RGB", (SIZE * OVERSAMPLE,) * 2, tuple(int(c) for c in self.background))
        pen = ImageDraw.Draw(image)
        x, y = self.centre
        way = self.reach * (2 * s - 1)
        if motion == "right":
            self._shape(pen, 0.5 + way, y, self.radius)
        elif motion == "down":
            self._shape(pen, x, 0.5 + way, self.radius)
        elif motion == "closer":
            self._shape(pen, x, y, self.radius * (0.5 + 1.3 * s))
        elif motion == "appear":
            self._shape(pen, x, y, self.radius * 1.2, opacity=s)
        elif motion == "turn":
            self._club(pen, 0.5 + (x - 0.5) / 2, 0.5 + (y - 0.5) / 2, self.reach, self.angle + self.turn * s)
        elif motion == "apart":
            gap = 0.1 + self.reach * s
            dx, dy = gap * cos(self.angle), gap * sin(self.angle)
            self._shape(pen, 0.5 + dx, 0.5 + dy, self.radius * 0.7)
            self._shape(pen, 0.5 - dx, 0.5 - dy, self.radius * 0.7, which=1)
        return image.resize((SIZE, SIZE), Image.Resampling.BOX)

    def _shape(self, pen, x, y, radius, which=0, opacity=1.0):
        colour = self.background + (self.colours[which] - self.background) * opacity
        n = self.corners[which]
        angles = [self.angle + 2 * pi * k / n for k in range(n)]
        self._polygon(pen, [(x + radius * cos(a), y + radius * sin(a)) for a in angles], colour)

    def _club(self, pen, x, y, length, angle):
        """A club that turns about its thin end (x, y). Angles grow clockwise, because y grows downwards."""
        head = (x + length * cos(angle), y + length * sin(angle))
        around = [angle - pi / 2 + pi * k / 8 for k in range(9)]
        outer = [(head[0] + length * 0.4 * cos(a), head[1] + length * 0.4 * sin(a)) for a in around]
        self._polygon(pen, [(x, y), *outer], self.colours[0])

    @staticmethod
    def _polygon(pen, points, colour):
        scale = SIZE * OVERSAMPLE
        pen.polygon([(px * scale, py * scale) for px, py in points], fill=tuple(int(round(c)) for c in colour))


def _save(frames: list[Image.Image], folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, start=1):
        frame.save(folder / f"{number:05d}.jpg", quality=90)
