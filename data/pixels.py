"""The pixels of crops: frames are resized, cropped, resized to the network's input, and perhaps mirrored.

There are two ways. ``faithful`` uses Pillow's resize, and its pixels are those of the released codes. It computes only
the part of the first resize that the crops show. This does not change a pixel. ``fast`` uses PyTorch's resize of uint8
images, which uses the processor's vector instructions. Its filter is Pillow's, but its weights have 16 bits. Therefore
a pixel may differ by 2 grey levels, and the mean difference is below 0.3 (``tests/test_fast_pixels.py``).
"""

from collections.abc import Sequence
from math import ceil, gcd

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from . import jpeg
from .transforms import Crop

FAITHFUL, FAST = "faithful", "fast"
PIXELS = (FAITHFUL, FAST)
BILINEAR, MIRROR = Image.Resampling.BILINEAR, Image.Transpose.FLIP_LEFT_RIGHT
MOST_PARTS = 1024  # of a pixel; Pillow's box holds float32 numbers, which have 24 bits: 13 for whole pixels leave 11


def cut(
    frames: Sequence[np.ndarray],
    size: tuple[int, int],
    crops: Sequence[Crop],
    side: int,
    pixels: str,
    flow: bool = False,
) -> Tensor:
    """The crops of all frames, uint8 (crops, frames, C, side, side).

    ``frames`` are uint8 (H, W, 3) or grey (H, W), all of one shape. They are resized to ``size`` (width, height). Each
    crop is then cut and resized to ``side`` x ``side``. A crop may extend past the frame; what is outside is black.
    ``pixels`` is ``"faithful"`` or ``"fast"``. If ``flow``, the frames are x, y, x, y, ... A mirror image reverses
    motion along x, so the values of its x frames are inverted. This is done before the resize to ``side``, as in the
    released tests. Pillow rounds halves up, so an inversion after the resize would give other pixels.

    The memory layout is (crops, frames, side, side, C). Convolutions in channels_last memory take it without a copy.
    """
    views = {FAITHFUL: _by_pillow, FAST: _by_torch}[pixels](frames, size, crops, side, flow)
    return torch.from_numpy(views).movedim(-1, -3)  # (crops, frames, C, side, side)


def describe(pixels: str) -> str:
    """One line for the log."""
    resize = {FAITHFUL: "Pillow resizes, as in the released codes", FAST: "PyTorch resizes, within 2 grey levels of it"}
    return f"pixels: {pixels}; {jpeg.decoder().reason}; {resize[pixels]}"


def _by_pillow(
    frames: Sequence[np.ndarray], size: tuple[int, int], crops: Sequence[Crop], side: int, flow: bool
) -> np.ndarray:
    """The crops, (crops, frames, side, side, C)."""
    channels = frames[0].shape[2:]
    views = np.empty((len(crops), len(frames), side, side, *channels), np.uint8)
    for i, frame in enumerate(frames):
        part, left, top = _resized_by_pillow(frame, size, crops)
        for view, crop in zip(views, crops, strict=True):
            x, y = crop.x - left, crop.y - top
            image = part.crop((x, y, x + crop.width, y + crop.height))
            if _is_inverted(i, crop, flow):
                image = ImageOps.invert(image)
            image = image.resize((side, side), BILINEAR)
            view[i] = np.asarray(image.transpose(MIRROR) if crop.mirrored else image)
    return views if channels else views[..., None]


def _is_inverted(i: int, crop: Crop, flow: bool) -> bool:
    """Whether the i-th frame of this crop shows motion along x that the mirror image reverses."""
    return flow and crop.mirrored and i % 2 == 0


def _resized_by_pillow(frame: np.ndarray, size: tuple[int, int], crops: Sequence[Crop]) -> tuple[Image.Image, int, int]:
    """A part of the resized frame that contains all crops, and its left column and top row.

    If both sides change, the part is the whole frame. Pillow then resizes in two passes and rounds between them, and
    the sides of the frame before and after decide which pass is first.
    """
    (left, right), (top, bottom) = _shown(size, crops)
    height, width = frame.shape[:2]
    if height == size[1]:
        left, right = _whole_steps(left, right, size[0], _pillow_step(width, size[0]))
        box = left * width / size[0], 0, right * width / size[0], bottom - top
        frame = frame[top:bottom]
    elif width == size[0]:
        top, bottom = _whole_steps(top, bottom, size[1], _pillow_step(height, size[1]))
        box = 0, top * height / size[1], right - left, bottom * height / size[1]
        frame = frame[:, left:right]
    else:
        left, top, right, bottom, box = 0, 0, *size, None
    return Image.fromarray(frame).resize((right - left, bottom - top), BILINEAR, box), left, top


@torch.inference_mode()  # this halves PyTorch's own work for each small operation
def _by_torch(
    frames: Sequence[np.ndarray], size: tuple[int, int], crops: Sequence[Crop], side: int, flow: bool
) -> np.ndarray:
    """The crops, (crops, frames, side, side, C)."""
    height, width = frames[0].shape[:2]
    (_, (top, bottom)), channels = _shown(size, crops), frames[0].size // (height * width)
    if height != size[1]:  # the filter also reads rows beside those shown, so the slice must contain them
        margin = 1 + ceil(max(1, size[1] / height))
        top, bottom = max(0, top - margin), min(size[1], bottom + margin)
    top, bottom = _whole_steps(top, bottom, size[1], _step(height, size[1]))
    rows = slice(top * height // size[1], bottom * height // size[1])  # contiguous in memory, unlike columns
    crops = [crop._replace(y=crop.y - top) for crop in crops]
    views = np.empty((len(crops), len(frames), side, side, channels), np.uint8)
    results = torch.from_numpy(views).movedim(-1, 2).unbind()
    for i, frame in enumerate(frames):  # a frame fits into the processor's cache, a clip does not
        stored = torch.from_numpy(frame[rows].reshape(1, -1, width, channels)).permute(0, 3, 1, 2)
        part = _resized(stored, (bottom - top, size[0]))
        for result, crop in zip(results, crops, strict=True):
            image = _cropped(part, crop)
            if _is_inverted(i, crop, flow):
                image = 255 - image
            image = _resized(image, (side, side))[0]
            result[i] = image.flip(-1) if crop.mirrored else image
    return views


def _cropped(images: Tensor, crop: Crop) -> Tensor:
    """The crop of images (1, C, H, W), with zeros outside of them."""
    height, width = images.shape[2:]
    right, bottom = crop.x + crop.width, crop.y + crop.height
    cropped = images[:, :, max(0, crop.y) : bottom, max(0, crop.x) : right]
    if cropped.shape[2:] == (crop.height, crop.width):
        return cropped
    return F.pad(cropped, (max(0, -crop.x), max(0, right - width), max(0, -crop.y), max(0, bottom - height)))


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (1, C, H, W) resized to ``size`` (height, width)."""
    height, width = images.shape[2:]
    if size[0] < height and size[1] > width:  # Pillow resizes the columns of such images first; PyTorch would not
        images = F.interpolate(images, (size[0], width), mode="bilinear", antialias=True)
    return images if images.shape[2:] == size else F.interpolate(images, size, mode="bilinear", antialias=True)


def _shown(size: tuple[int, int], crops: Sequence[Crop]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The columns (first, last + 1) and the rows of the resized frame that at least one crop shows."""
    columns = max(0, min(crop.x for crop in crops)), min(size[0], max(crop.x + crop.width for crop in crops))
    rows = max(0, min(crop.y for crop in crops)), min(size[1], max(crop.y + crop.height for crop in crops))
    return columns, rows


def _step(stored: int, resized: int) -> int:
    """At multiples of this number of resized pixels, the same place in the stored frame is a whole pixel too."""
    return resized // gcd(stored, resized)


def _pillow_step(stored: int, resized: int) -> int:
    """Like ``_step``, but the place may also be a half, a quarter, ... of a pixel, which Pillow's box can hold."""
    step = whole = _step(stored, resized)
    while step % 2 == 0 and whole // step < MOST_PARTS:
        step //= 2
    return step


def _whole_steps(start: int, stop: int, end: int, step: int) -> tuple[int, int]:
    """The smallest range within 0..end from and to multiples of ``step`` that holds start..stop."""
    return start // step * step, min(end, -(-stop // step) * step)
