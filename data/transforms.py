"""The geometry of clips (resized size, crops, mirror images) and the normalisation on the device.

``pixels.py`` computes the pixels of the crops.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .video_list import DataError

ResizeTo = int | tuple[int, int] | None  # the short side, (height, width), or the size as stored

SCALES = (1, 0.875, 0.75, 0.66)
MAX_DISTORT = 1  # the crop's height and width are at most this many scales apart
TRAIN_CROPS = ("multi_scale", "random_resized")
AREA, ASPECT = (0.08, 1), (3 / 4, 4 / 3)  # of a random resized crop: share of the frame's area, and width / height
CROPS = (1, 3, 5, 10)
CROP_RULES = ("grid", "long_side", "diagonal")  # for the places of three test crops
MIRRORED = {10: 5}  # number of crops -> how many of them, at the end, are mirror images
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Crop(NamedTuple):
    """A box of a resized frame, in px. If ``mirrored``, its mirror image is taken."""

    x: int
    y: int
    width: int
    height: int
    mirrored: bool = False


def resized_size(width: int, height: int, size: ResizeTo) -> tuple[int, int]:
    """(width, height) of a frame after a resize.

    If ``size`` is one number, it is the length of the short side. The long side keeps the aspect ratio, rounded down.
    """
    if size is None:
        return width, height
    if not isinstance(size, int):
        return size[1], size[0]
    return (size, int(size * height / width)) if width <= height else (int(size * width / height), size)


def crop_sizes(width: int, height: int, input_size: int, scales: Sequence[float] = SCALES) -> list[tuple[int, int]]:
    """(width, height) of the training crops: scales of the short side.

    A side within 2 px of the input size becomes equal to it.
    """
    sides = [int(min(width, height) * scale) for scale in scales]
    sides = [input_size if abs(side - input_size) < 3 else side for side in sides]
    # If a frame is 1 or 2 px smaller than the input, the crop extends past the frame. What is outside becomes black, as
    # in the released code.
    n = len(sides)
    return [(sides[j], sides[i]) for i in range(n) for j in range(n) if abs(i - j) <= MAX_DISTORT]


def crop_offsets(width: int, height: int, crop_width: int, crop_height: int) -> list[tuple[int, int]]:
    """The 13 (x, y) of the training crop on a 5x5 grid: corners, centre (the test's 5), mid-edges, quarters."""
    x, y = (width - crop_width) // 4, (height - crop_height) // 4
    grid = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3)]
    return [(i * x, j * y) for i, j in grid]


def multi_scale_crop(
    width: int, height: int, input_size: int, rng: np.random.Generator, scales: Sequence[float] = SCALES
) -> Crop:
    """The training crop (TSN) of frames of this size: a random size and one of 13 places."""
    sizes = crop_sizes(width, height, input_size, scales)
    crop_width, crop_height = sizes[rng.integers(len(sizes))]
    offsets = crop_offsets(width, height, crop_width, crop_height)
    return Crop(*offsets[rng.integers(len(offsets))], crop_width, crop_height)


def random_resized_crop(width: int, height: int, rng: np.random.Generator) -> Crop:
    """The training crop of TPN: a random area and a random aspect ratio; width and height are swapped with p = 0.5.

    The released code compares the crop's width with the frame's height, and its height with the frame's width, and
    draws its place in the same way. What lies beyond the frame is cut off. A crop of a landscape frame is therefore
    never wider than the frame is high, and its aspect ratio may change. If ten draws do not fit, the crop is the
    central square.

    Source: TPN repository, mmaction/datasets/transforms.py (RandomResizedCrop).
    """
    for _ in range(10):
        area, aspect = rng.uniform(*AREA) * width * height, rng.uniform(*ASPECT)
        sides = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        crop_width, crop_height = sides[::-1] if rng.random() < 0.5 else sides
        if crop_width <= height and crop_height <= width:
            x, y = (int(rng.integers(bound + 1)) for bound in (width - crop_height, height - crop_width))
            return Crop(x, y, min(crop_width, width - x), min(crop_height, height - y))
    side = min(width, height)
    return Crop((width - side) // 2, (height - side) // 2, side, side)


def training_crop(
    rule: str, width: int, height: int, input_size: int, rng: np.random.Generator, scales: Sequence[float] = SCALES
) -> Crop:
    """The training crop of ``rule``, one of ``TRAIN_CROPS``. ``scales`` are those of ``multi_scale``."""
    if rule == "multi_scale":
        return multi_scale_crop(width, height, input_size, rng, scales)
    return random_resized_crop(width, height, rng)


def random_part(clip: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A random square of ``size`` px of a clip (T, C, S, S), the same in all frames. It keeps the memory layout."""
    x, y = rng.integers(clip.shape[-1] - size + 1, size=2)
    return clip[..., y : y + size, x : x + size].contiguous(memory_format=torch.channels_last)


def random_flip(label: int, policy: str, mirror_pairs: Mapping[int, int], rng: np.random.Generator) -> tuple[bool, int]:
    """Whether to mirror a clip, with probability 0.5; and the label of the result.

    The ``policy`` ``"none"`` mirrors no class (TSM). ``"skip"`` mirrors the classes that are not in ``mirror_pairs``
    (RSA). ``"swap"`` mirrors every class, and a class in ``mirror_pairs`` gets the label of its mirror class (SDA).
    ``"keep"`` mirrors every class, and each keeps its label (TPN).
    """
    if policy == "none" or (policy == "skip" and label in mirror_pairs) or rng.random() >= 0.5:
        return False, label
    return True, label if policy == "keep" else mirror_pairs.get(label, label)


def test_crops(width: int, height: int, num_crops: int, crop_size: int, rule: str = "grid") -> list[Crop]:
    """The crops of a test.

    1 crop is the centre. 3 crops are left, right and centre. 5 crops are the corners and the centre. 10 crops are these
    five, and then their mirror images.

    ``rule`` is about 3 crops only. ``"grid"`` is TSN's: their places are those of the training crops. ``"long_side"``
    (TPN) is the beginning, the end and the middle of the frame's long side. ``"diagonal"`` (SmallBig) is the centre,
    the lower right and the upper left corner.

    Errors: ``DataError`` if the crop is larger than the frame.
    """
    if crop_size > min(width, height):
        raise DataError(
            f"a crop of {crop_size} does not fit into frames of {height}x{width}; lower the crop or raise the resize"
        )
    if num_crops == 1:  # this centre rounds a half pixel to even; the grid of the other crops rounds it down
        return [Crop(round((width - crop_size) / 2), round((height - crop_size) / 2), crop_size, crop_size)]
    if num_crops == 3 and rule != "grid":
        return [Crop(x, y, crop_size, crop_size) for x, y in _three_places(width - crop_size, height - crop_size, rule)]
    places = crop_offsets(width, height, crop_size, crop_size)
    corners, left, centre, right = places[:5], places[5], places[4], places[6]
    crops = [Crop(x, y, crop_size, crop_size) for x, y in ([left, right, centre] if num_crops == 3 else corners)]
    return crops + [crop._replace(mirrored=True) for crop in crops] if num_crops == 10 else crops


def _three_places(right: int, bottom: int, rule: str) -> list[tuple[int, int]]:
    """The (x, y) of three crops. ``right`` and ``bottom`` are the largest x and y at which the crop fits."""
    if rule == "diagonal":
        return [(round(right / 2), round(bottom / 2)), (right, bottom), (0, 0)]
    x, y = right // 2, bottom // 2
    return [(0, y), (2 * x, y), (x, y)] if right >= bottom else [(x, 0), (x, 2 * y), (x, y)]


def normalise(clips: Tensor) -> Tensor:
    """(..., 3, H, W) of grey levels 0..255 -> float32: scaled to [0, 1], minus ImageNet's mean, divided by its std.

    The clips may be uint8 or float16 and on any device.
    """
    mean, std = (torch.tensor(v, device=clips.device) for v in (IMAGENET_MEAN, IMAGENET_STD))
    rows = clips.movedim(-3, -1)  # (..., H, W, 3)
    if rows.is_contiguous():  # one loop over a row of pixels with 3 channels each is faster than a loop per channel
        rows, mean, std = rows.flatten(-2), mean.repeat(rows.shape[-2]), std.repeat(rows.shape[-2])
        return rows.float().div_(255).sub_(mean).div_(std).unflatten(-1, (-1, 3)).movedim(-1, -3)
    return clips.float().div_(255).sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))
