"""What a network sees of a segment: a frame (RGB), differences of frames (RGBDiff) or optical flow (Flow).

TSN's three modalities as TSM's code has them; RGBDiff is the one without the frame itself ("keep_rgb" off).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from . import sampling
from .decode import read_flow, read_frames, template_fields
from .transforms import IMAGENET_STD, SCALES, normalise
from .video_list import DataError, Video

MODALITIES = ("RGB", "RGBDiff", "Flow")
DATA_LENGTH = 5  # TSM's, of flow and of differences
FLOW_MEAN, FLOW_STD = 0.5, sum(IMAGENET_STD) / 3


@dataclass(frozen=True)
class Modality:
    """One of ``MODALITIES``.

    ``data_length``, L: flow frames or differences in a segment. RGB has one frame whatever is asked, and L is 1.
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
            object.__setattr__(self, "data_length", 1)  # one for all settings, so that they are equal

    @property
    def frames(self) -> int:
        """Consecutive frames that are read for a segment."""
        return self.data_length + (self.name == "RGBDiff")

    @property
    def stored_channels(self) -> int:
        """uint8 channels of a segment as the datasets give it."""
        return self.frames * (2 if self.name == "Flow" else 3)

    @property
    def channels(self) -> int:
        """Channels of a segment as the network sees it, its ``in_channels``."""
        return self.data_length * (2 if self.name == "Flow" else 3)

    @property
    def scales(self) -> tuple[float, ...]:
        """Of the training crop: TSM leaves the smallest out where it is not RGB."""
        return SCALES if self.name == "RGB" else SCALES[:3]

    def check_template(self, image_tmpl: str) -> None:
        """Errors: ``DataError`` for a template whose files this modality cannot be."""
        if template_fields(image_tmpl) > 1 and self.name != "Flow":
            raise DataError(
                f"image_tmpl {image_tmpl!r} names x and y files of flow, not frames for {self.name}; "
                "choose modality Flow, or a template with the number alone, such as '{:05d}.jpg'"
            )

    def describe(self, image_tmpl: str) -> str:
        """One line for the log: what is read and what the network sees."""
        files = {
            "RGB": "one frame a segment",
            "RGBDiff": f"{self.data_length} differences of {self.frames} frames a segment",
            "Flow": f"{self.data_length} flow frames a segment, "
            + ("red x and green y of a file" if template_fields(image_tmpl) == 1 else "an x and a y file each"),
        }[self.name]
        return f"modality: {self.name}, {files} ({image_tmpl}), {self.channels} channels"

    def read(self, video: Video, numbers: list[int], root: str, image_tmpl: str) -> list[Image.Image]:
        """The images of the segments that begin at these numbers: RGB frames, or grey flow x, y, x, y, ...

        Errors: those of ``decode``.
        """
        numbers = sampling.consecutive(numbers, video.num_frames, self.frames)
        return (read_flow if self.name == "Flow" else read_frames)(video, numbers, root, image_tmpl)

    def read_from(
        self, frames: Callable[[list[int]], list[Image.Image]], num_frames: int, numbers: list[int]
    ) -> list[Image.Image]:
        """The same from a function that reads RGB frames by their numbers, of a video in no list."""
        return frames(sampling.consecutive(numbers, num_frames, self.frames))

    def normalise(self, clips: Tensor) -> Tensor:
        """uint8 (..., stored_channels, H, W) on any device -> float32 (..., channels, H, W).

        RGB: ImageNet's mean and deviations. Flow: rest is 0, divided by the mean of these deviations. RGBDiff: each
        frame less the one before, both in [0, 1], and nothing else.
        """
        if self.name == "RGB":
            return normalise(clips)
        if self.name == "Flow":
            return clips.float().div_(255).sub_(FLOW_MEAN).div_(FLOW_STD)
        frames = clips.float().div_(255).unflatten(-3, (self.frames, 3))  # (..., L+1, 3, H, W)
        return torch.diff(frames, dim=-4).flatten(-4, -3)  # (..., 3L, H, W)


RGB = Modality("RGB")
