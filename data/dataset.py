"""Datasets of uint8 clips for training and evaluation."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from . import sampling, transforms
from .modality import RGB, Modality
from .transforms import Frames, Size
from .video_list import DataError, Video


class TrainDataset(Dataset):
    """Random clips: ``dataset[i] -> (uint8 (T, C, S, S), label, i)``, C the modality's ``stored_channels``.

    What is drawn depends on seed, epoch and i only, not on workers or processes. An item that cannot be read is
    returned as its ``DataError``; ``collate`` brings it, one clear line, out of a loading process.
    """

    def __init__(
        self,
        videos: list[Video],
        root: str,
        image_tmpl: str,
        num_segments: int,
        resize: Size,
        input_size: int,
        flip: str,
        mirror_pairs: dict[int, int],
        seed: int = 0,
        modality: Modality = RGB,
    ):
        modality.check_template(image_tmpl)
        self.videos, self.root, self.image_tmpl, self.num_segments = videos, root, image_tmpl, num_segments
        self.resize, self.input_size, self.flip, self.mirror_pairs = resize, input_size, flip, mirror_pairs
        self.seed, self.epoch, self.modality = seed, 0, modality

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, i: int) -> tuple[Tensor, int, int] | DataError:
        video, rng = self.videos[i], np.random.default_rng((self.seed, self.epoch, i))
        modality = self.modality
        numbers = sampling.random_segments(video.num_frames, self.num_segments, rng, modality.frames)
        try:
            frames = modality.read(video, numbers, self.root, self.image_tmpl)
        except DataError as error:
            return BadVideo(str(error), i)
        frames = transforms.resize(frames, self.resize)
        frames = transforms.multi_scale_crop(frames, self.input_size, rng, modality.scales)
        frames, label = transforms.random_flip(frames, video.label, self.flip, self.mirror_pairs, rng)
        return transforms.to_tensor(frames, modality.stored_channels), label, i


class EvalDataset(Dataset):
    """All views of a video: ``dataset[i] -> (uint8 (V, T, C, S, S), label, i)``, V = crops x clips; errors as above.

    The last ``mirrored_views`` of the V are mirror images. ``mirror_pairs`` says which classes exchange their scores
    there; none unless given.
    """

    def __init__(
        self,
        videos: list[Video],
        root: str,
        image_tmpl: str,
        num_segments: int,
        resize: Size,
        crop_size: int,
        input_size: int,
        short_videos: str,
        num_crops: int = 1,
        num_clips: int = 1,
        modality: Modality = RGB,
        order: sampling.FrameOrder = sampling.AS_IT_IS,
        mirror_pairs: Mapping[int, int] | None = None,
    ):
        modality.check_template(image_tmpl)
        self.videos, self.root, self.image_tmpl, self.num_segments = videos, root, image_tmpl, num_segments
        self.resize, self.crop_size, self.input_size = resize, crop_size, input_size
        self.short_videos, self.num_crops, self.num_clips = short_videos, num_crops, num_clips
        self.modality, self.order, self.mirror_pairs = modality, order, mirror_pairs or {}

    @property
    def mirrored_views(self) -> int:
        return self.num_clips * transforms.MIRRORED.get(self.num_crops, 0)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, i: int) -> tuple[Tensor, int, int] | DataError:
        video = self.videos[i]
        try:
            read = partial(self.modality.read, video, root=self.root, image_tmpl=self.image_tmpl)
            return self.views(video.num_frames, read, seed=i), video.label, i
        except DataError as error:
            return BadVideo(str(error), i)
        except ValueError as error:
            return BadVideo(f"{video.where}: {error}", i)

    def views(self, num_frames: int, read: Callable[[list[int]], Frames], seed: int = 0) -> Tensor:
        """All views of a video, uint8 (V, T, C, S, S).

        ``read`` gives the images of the segments that begin at these numbers; ``seed`` is for a shuffled order.
        Errors: those of ``read``, and ``ValueError`` for a crop that does not fit.
        """
        t, length = self.num_segments, self.modality.frames
        clips = sampling.test_clips(num_frames, t, self.num_clips, self.short_videos, length)
        frames = read([number for clip in clips for number in self.order(clip, seed)])
        frames = transforms.resize(frames, self.resize)
        crops = transforms.test_crops(frames, self.num_crops, self.crop_size, self.input_size)
        channels = self.modality.stored_channels
        views = torch.stack([transforms.to_tensor(crop, channels) for crop in crops])  # (crops, clips*T, C, S, S)
        return views.unflatten(1, (-1, t)).flatten(0, 1)


class BadVideo(DataError):
    """What is wrong with the i-th video; it passes whole from a worker to the main process."""

    def __init__(self, message: str, index: int):
        super().__init__(message, index)
        self.message, self.index = message, index

    def __str__(self) -> str:
        return self.message


def collate_good(items: list) -> tuple[list[Tensor] | None, dict[int, str]]:
    """A batch of the items that could be read, ``None`` if there is none, and why the others could not."""
    good = [item for item in items if not isinstance(item, DataError)]
    return (default_collate(good) if good else None), {
        item.index: str(item) for item in items if isinstance(item, DataError)
    }


def collate(items: list) -> list[Tensor] | DataError:
    """A batch, or the first error among its items."""
    return next((item for item in items if isinstance(item, DataError)), None) or default_collate(items)
