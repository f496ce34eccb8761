"""Random changes of the colours of training clips."""

import numpy as np
import torch
from torch import Tensor

COLOR_JITTER = ("none", "tpn")
BRIGHTNESS = 32  # grey levels that are added, at most
FACTORS = (0.6, 1.4)  # of contrast and of saturation
TURNS = 18  # half turns of the hue, at most
LIGHTING = 0.1  # standard deviation of PCA lighting (AlexNet)
# In blue, green, red, because the released code computes on images in this order. Its luminance has the weights of red
# for blue.
LUMINANCE = np.array([0.299, 0.587, 0.114])
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
FROM_YIQ = np.array([[1.0, 0.956, 0.621], [1.0, -0.272, -0.647], [1.0, -1.107, 1.705]])
EIGENVALUES = np.array([55.46, 4.794, 1.148])  # of ImageNet's colours, 0..255
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def jitter(clip: Tensor, rng: np.random.Generator) -> Tensor:
    """TPN's random colours of a clip, uint8 (T, 3, H, W) -> float16 (T, 3, H, W), from 0 to 255 and beyond.

    The amounts of brightness, contrast, saturation and hue are drawn once for the clip. Each frame has each of the four
    changes with probability 0.5. The lighting is the same for all frames. Colours beyond 0..255 are kept, as in the
    released code, so the result cannot be uint8. It keeps the clip's memory layout.

    Source: TPN repository, mmaction/datasets/transforms.py (GroupColorJitter with color_space_aug).
    """
    matrices, offsets = color_maps(len(clip), rng)
    pixels = clip.movedim(1, -1).flatten(1, 2).float()  # (T, H * W, 3)
    changed = torch.baddbmm(offsets[:, None], pixels, matrices.transpose(1, 2)).half()
    return changed.unflatten(1, clip.shape[2:]).movedim(-1, 1)


def color_maps(frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """For each frame, the matrix (3, 3) and the offset (3) that change a pixel: matrix @ (red, green, blue) + offset.

    All changes are linear. Contrast only multiplies, so its place among them does not matter; the released code draws
    this place, too.
    """
    brightness, contrast = rng.uniform(-BRIGHTNESS, BRIGHTNESS), rng.uniform(*FACTORS)
    saturation, angle = rng.uniform(*FACTORS), np.pi * rng.uniform(-TURNS, TURNS)
    coins = rng.random((frames, 4)) > 0.5
    lighting = EIGENVECTORS @ (rng.normal(0, LIGHTING, 3) * EIGENVALUES)  # red, green, blue

    grey = np.tile(LUMINANCE, (3, 1))  # a pixel -> its luminance, three times
    turned = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    whole = np.eye(3)
    matrices, offsets = [], []
    for bright, contrasted, saturated, hued in coins:
        matrix = contrast * whole if contrasted else whole
        matrix = (saturation * whole + (1 - saturation) * grey if saturated else whole) @ matrix
        matrix = (FROM_YIQ @ turned @ YIQ if hued else whole) @ matrix
        offset = matrix @ np.full(3, brightness * bright)
        matrices.append(matrix[::-1, ::-1])  # from blue, green, red to red, green, blue
        offsets.append(offset[::-1] + lighting)
    return torch.from_numpy(np.stack(matrices)).float(), torch.from_numpy(np.stack(offsets)).float()
