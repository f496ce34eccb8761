"""Resizing, cropping and flipping of decoded frames, and the normalisation that follows on the device.

Frames are PIL images of one size. The pixel operations are PIL's and torchvision's, as in the released code. If
``flow`` is true, the images are optical flow: grey images in the order x, y, x, y, ... Otherwise they are RGB frames.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from .video_list import DataError

Frames = list[Image.Image]
ResizeTo = int | tuple[int, int] | None  # the short side, (height, width), or the size as stored

SCALES = (1, 0.875, 0.75, 0.66)
MAX_DISTORT = 1  # the crop's height and width are at most this many scales apart
CROPS = (1, 3, 5, 10)
MIRRORED = {10: 5}  # number of crops -> how many of them, at the end, are mirror images
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize(frames: Frames, size: ResizeTo) -> Frames:
    """Bilinear resize. If ``size`` is one number, it is the length of the short side, and the aspect ratio is kept."""
    if size is None:
        return frames
    size = [size] if isinstance(size, int) else list(size)
    return [F.resize(frame, size, InterpolationMode.BILINEAR) for frame in frames]


def crop_sizes(width: int, height: int, input_size: int, scales: Sequence[float] = SCALES) -> list[tuple[int, int]]:
    """(width, height) of the training crops: scales of the short side.

    A side within 2 px of the input size becomes equal to it.
    """
    sides = [int(min(width, height) * scale) for scale in scales]
    sides = [input_size if abs(side - input_size) < 3 else side for side in sides]
    # If a frame is 1 or 2 px smaller than the input, the crop extends past the frame and PIL adds black, as released.
    n = len(sides)
    return [(sides[j], sides[i]) for i in range(n) for j in range(n) if abs(i - j) <= MAX_DISTORT]


def crop_offsets(width: int, height: int, crop_width: int, crop_height: int) -> list[tuple[int, int]]:
    """The 13 (x, y) of the training crop on a 5x5 grid: corners, centre (the test's 5), mid-edges, quarters."""
    x, y = (width - crop_width) // 4, (height - crop_height) // 4
    grid = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3)]
    return [(i * x, j * y) for i, j in grid]


def multi_scale_crop(
    frames: Frames, input_size: int, rng: np.random.Generator, scales: Sequence[float] = SCALES
) -> Frames:
    """The training crop (TSN): a random size and one of 13 places, equal for all frames, resized to the input size."""
    width, height = frames[0].size
    sizes = crop_sizes(width, height, input_size, scales)
    crop_width, crop_height = sizes[rng.integers(len(sizes))]
    offsets = crop_offsets(width, height, crop_width, crop_height)
    x, y = offsets[rng.integers(len(offsets))]
    crops = [frame.crop((x, y, x + crop_width, y + crop_height)) for frame in frames]
    return [crop.resize((input_size, input_size), Image.Resampling.BILINEAR) for crop in crops]


def random_flip(
    frames: Frames,
    label: int,
    policy: str,
    mirror_pairs: Mapping[int, int],
    rng: np.random.Generator,
    flow: bool = False,
) -> tuple[Frames, int]:
    """Mirror the frames with probability 0.5; returns the frames and their label.

    The ``policy`` ``"none"`` mirrors no class (TSM). ``"skip"`` mirrors the classes that are not in ``mirror_pairs``
    (RSA). ``"swap"`` mirrors every class, and a class in ``mirror_pairs`` gets the label of its mirror class (SDA).
    """
    if policy == "none" or (policy == "skip" and label in mirror_pairs) or rng.random() >= 0.5:
        return frames, label
    return mirror(frames, flow), mirror_pairs.get(label, label)


def mirror(frames: Frames, flow: bool = False) -> Frames:
    """The mirror images. A mirror reverses motion along x, so the x images of flow are also inverted."""
    frames = [frame.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for frame in frames]
    return [ImageOps.invert(frame) if flow and i % 2 == 0 else frame for i, frame in enumerate(frames)]


def test_crops(frames: Frames, num_crops: int, crop_size: int, input_size: int, flow: bool = False) -> list[Frames]:
    """The crops of a test, resized to the input size.

    1 crop is the centre. 3 crops are left, right and centre. 5 crops are the corners and the centre. 10 crops are these
    five, and then their mirror images.

    Errors: ``DataError`` if the crop is larger than the frame.
    """
    width, height = frames[0].size
    if crop_size > min(width, height):
        raise DataError(
            f"a crop of {crop_size} does not fit into frames of {height}x{width}; lower the crop or raise the resize"
        )
    if num_crops == 1:
        crops = [[F.center_crop(frame, [crop_size, crop_size]) for frame in frames]]
    else:
        places = crop_offsets(width, height, crop_size, crop_size)
        corners, left, centre, right = places[:5], places[5], places[4], places[6]
        boxes = [left, right, centre] if num_crops == 3 else corners
        crops = [[frame.crop((x, y, x + crop_size, y + crop_size)) for frame in frames] for x, y in boxes]
        if num_crops == 10:
            crops += [mirror(crop, flow) for crop in crops]
    return [resize(crop, input_size) for crop in crops]


def to_tensor(frames: Frames, channels: int = 3) -> Tensor:
    """A uint8 tensor (T, channels, H, W). The channels of a segment's images follow one another."""
    images = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]))  # (images, H, W) or (images, H, W, 3)
    images = images.permute(0, 3, 1, 2) if images.dim() == 4 else images
    return images.contiguous().view(-1, channels, *images.shape[-2:])


def normalise(clips: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) on any device -> float32: scaled to [0, 1], minus ImageNet's mean, divided by its std."""
    mean, std = (torch.tensor(v, device=clips.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return clips.float().div_(255).sub_(mean).div_(std)
