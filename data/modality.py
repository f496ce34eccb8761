"""What a network sees of a segment: a frame (RGB), differences of frames (RGBDiff) or optical flow (Flow).

These are TSN's three modalities as TSM's code implements them. RGBDiff holds only differences and not the frame itself
(TSM's "keep_rgb" is off).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import sampling
from .frame_source import FrameSource
from .transforms import IMAGENET_MEAN, IMAGENET_STD, SCALES, normalise
from .video_list import DataError, Video

MODALITIES = ("RGB", "RGBDiff", "Flow")
DATA_LENGTH = 5  # TSM's, of flow and of differences
FLOW_MEAN, FLOW_STD = 0.5, sum(IMAGENET_STD) / 3


@dataclass(frozen=True)
class Modality:
    """One of ``MODALITIES``.

    ``data_length`` is L, the number of flow frames or differences in a segment. For RGB, L is always 1: one frame.

    Errors: ``DataError`` for an unknown name and a length below 1.
    """

    name: str
    data_length: int = DATA_LENGTH

    def __post_init__(self):
        if self.name not in MODALITIES:
            raise DataError(f"modality {self.name!r} must be one of {', '.join(MODALITIES)}")
        if self.data_length < 1:
            raise DataError(f"data_length {self.data_length} must be at least 1; {DATA_LENGTH} is usual")
        if self.name == "RGB":
            object.__setattr__(self, "data_length", 1)  # any given length is replaced; all RGB objects are equal

    @property
    def is_flow(self) -> bool:
        return self.name == "Flow"

    @property
    def frames_per_segment(self) -> int:
        """The number of consecutive frames that are read for a segment."""
        return self.data_length + (self.name == "RGBDiff")

    @property
    def stored_channels(self) -> int:
        """The number of uint8 channels of a segment in a dataset's clips."""
        return self.frames_per_segment * (2 if self.is_flow else 3)

    @property
    def channels(self) -> int:
        """The number of channels of a segment that the network sees (its ``in_channels``)."""
        return self.data_length * (2 if self.is_flow else 3)

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales of training crops. For flow and differences, TSM leaves out the smallest scale."""
        return SCALES if self.name == "RGB" else SCALES[:3]

    def describe(self, source: FrameSource) -> str:
        """One line for the log that says what is read from the source and what the network sees."""
        read = {
            "RGB": "one frame a segment",
            "RGBDiff": f"{self.data_length} differences of {self.frames_per_segment} frames a segment",
            "Flow": f"{self.data_length} flow frames a segment, {source.flow_form}",
        }[self.name]
        return f"modality: {self.name}, {read} ({source}), {self.channels} channels"

    def read(self, video: Video, numbers: list[int], source: FrameSource) -> list[np.ndarray]:
        """The images of the segments that begin at these numbers.

        They are RGB frames, uint8 (H, W, 3), or grey flow x, y, x, y, ..., uint8 (H, W).

        Errors: the errors of the source.
        """
        numbers = sampling.consecutive(numbers, source.length(video), self.frames_per_segment)
        return source.flow(video, numbers) if self.is_flow else source.frames(video, numbers)

    def segments(self, images: Tensor) -> Tensor:
        """(..., images, C, H, W) as ``read`` gives them -> (..., segments, stored_channels, H, W)."""
        per_segment = self.stored_channels // images.shape[-3]
        return images if per_segment == 1 else images.unflatten(-4, (-1, per_segment)).flatten(-4, -3)

    def normalise(self, clips: Tensor) -> Tensor:
        """uint8 (..., stored_channels, H, W) on any device -> float32 (..., channels, H, W).

        RGB uses ImageNet's means and standard deviations. For Flow, no motion becomes 0, and the divisor is the mean of
        these standard deviations. For RGBDiff, both frames are scaled to [0, 1] and the earlier one is subtracted from
        the later one, without a divisor.
        """
        if self.name == "RGB":
            return normalise(clips)
        if self.is_flow:
            return clips.float().div_(255).sub_(FLOW_MEAN).div_(FLOW_STD)
        frames = clips.float().div_(255).unflatten(-3, (self.frames_per_segment, 3))  # (..., L+1, 3, H, W)
        return torch.diff(frames, dim=-4).flatten(-4, -3)  # (..., 3L, H, W)

    def pictures(self, clips: Tensor) -> Tensor:
        """``normalise`` undone: float (..., channels, H, W) -> a colour picture of each segment, uint8 (..., 3, H, W).

        A segment of RGBDiff is shown by its middle difference, of which mid-grey is none. A segment of Flow is shown by
        its middle flow frame: red is x, green is y, and mid-grey is no motion.
        """
        images = clips.float().unflatten(-3, (self.data_length, -1))[..., self.data_length // 2, :, :, :]
        if self.name == "RGB":
            mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            images = images * std + mean
        elif self.is_flow:
            images = images * FLOW_STD + FLOW_MEAN
            images = torch.cat([images, torch.full_like(images[..., :1, :, :], FLOW_MEAN)], dim=-3)
        else:
            images = (images + 1) / 2
        return (255 * images).round().clamp(0, 255).to(torch.uint8)


RGB = Modality("RGB")
