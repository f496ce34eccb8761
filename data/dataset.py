"""Datasets of uint8 clips for training and evaluation."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from . import colour, sampling, transforms
from .clip_rules import CLIP_RULES, ClipSettings, training_frames
from .frame_source import FrameSource
from .modality import RGB, Modality
from .pixels import FAITHFUL, cut
from .transforms import ResizeTo
from .video_list import DataError, Video


class TrainDataset(Dataset):
    """Random clips: ``dataset[epoch, i] -> (uint8 (T, C, S, S), label, i)``, where C is ``modality.stored_channels``.

    With ``color_jitter``, clips are float16. ``frames`` is one of ``TRAIN_RULES``, ``crop`` one of ``TRAIN_CROPS``. If
    there is a ``crop_size``, the crop is resized to this size, and the clip is a random part of it.

    The random numbers depend only on seed, epoch and i, not on workers or processes. If a video cannot be read, the
    item is a ``DataError``. It is returned and not raised, because ``collate`` then passes it on to the main process,
    which reports it in one line.

    Errors: ``DataError`` if the source does not hold what the modality reads.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        source: FrameSource,
        num_segments: int,
        resize: ResizeTo,
        input_size: int,
        flip: str,
        mirror_pairs: dict[int, int],
        seed: int = 0,
        modality: Modality = RGB,
        pixels: str = FAITHFUL,
        frames: str = "segments",
        units: int | None = None,
        crop: str = "multi_scale",
        crop_size: int | None = None,
        color_jitter: str = "none",
    ):
        source.check(modality.name)
        self.videos, self.source, self.num_segments = videos, source, num_segments
        self.resize, self.input_size, self.flip, self.mirror_pairs = resize, input_size, flip, mirror_pairs
        self.seed, self.modality, self.pixels = seed, modality, pixels
        self.frames, self.crop, self.crop_size, self.color_jitter = frames, crop, crop_size, color_jitter
        self.clips = ClipSettings(num_segments, length=modality.frames_per_segment, units=units)

    @property
    def bytes_per_value(self) -> int:
        return 1 if self.color_jitter == "none" else 2

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int, int] | DataError:
        epoch, i = place
        video, modality, rng = self.videos[i], self.modality, np.random.default_rng((self.seed, epoch, i))
        try:
            n = self.source.length(video)
            numbers = training_frames(self.frames, n, self.clips, rng)
            frames = modality.read(video, numbers, self.source)
        except DataError as error:
            return BadVideo(f"{video.where}: {error}", i)
        size = transforms.resized_size(*frames[0].shape[1::-1], self.resize)
        side = self.crop_size or self.input_size
        crop = transforms.training_crop(self.crop, *size, side, rng, modality.scales)
        mirrored, label = transforms.random_flip(video.label, self.flip, self.mirror_pairs, rng)
        crops = [crop._replace(mirrored=mirrored)]
        (clip,) = cut(frames, size, crops, side, self.pixels)
        if mirrored and modality.is_flow:  # a mirror reverses motion along x; in training after the last resize
            clip[0::2] = 255 - clip[0::2]
        if self.crop_size:
            clip = transforms.random_part(clip, self.input_size, rng)
        if self.color_jitter != "none":
            clip = colour.jitter(clip, rng)
        return modality.segments(clip), label, i


class EvalDataset(Dataset):
    """All views of a video: ``dataset[i] -> (uint8 (V, T, C, S, S), label, i)``, V = crops x clips.

    If a video cannot be read, the item is a ``DataError``, as in ``TrainDataset``. The last ``mirrored_views`` of the V
    views are mirror images. ``mirror_pairs`` says which classes exchange their scores in these views; by default none
    do.

    ``clip_rule`` is one of ``CLIP_RULES``, ``crop_rule`` one of ``CROP_RULES``. A rule that draws random frames draws
    the same ones each time, because its random numbers depend only on i. ``view_average`` says how the scores of the
    views become the video's scores: the mean of their ``"logits"``, or of their probabilities (``"softmax"``).

    Errors: ``DataError`` if the source does not hold what the modality reads.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        source: FrameSource,
        num_segments: int,
        resize: ResizeTo,
        crop_size: int,
        input_size: int,
        short_videos: str,
        num_crops: int = 1,
        num_clips: int = 1,
        modality: Modality = RGB,
        order: sampling.FrameOrder = sampling.AS_IT_IS,
        mirror_pairs: Mapping[int, int] | None = None,
        pixels: str = FAITHFUL,
        clip_rule: str = "usual",
        crop_rule: str = "grid",
        view_average: str = "logits",
        units: int | None = None,
    ):
        source.check(modality.name)
        self.videos, self.source, self.num_segments = videos, source, num_segments
        self.resize, self.crop_size, self.input_size = resize, crop_size, input_size
        self.num_crops, self.num_clips, self.view_average = num_crops, num_clips, view_average
        self.modality, self.order, self.mirror_pairs, self.pixels = modality, order, mirror_pairs or {}, pixels
        self.clip_rule, self.crop_rule, self.bytes_per_value = clip_rule, crop_rule, 1
        self.clips = ClipSettings(num_segments, num_clips, short_videos, modality.frames_per_segment, units)

    @property
    def mirrored_views(self) -> int:
        return self.num_clips * transforms.MIRRORED.get(self.num_crops, 0)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, i: int) -> tuple[Tensor, int, int] | DataError:
        video = self.videos[i]
        try:
            return self.views(i), video.label, i
        except DataError as error:
            return BadVideo(f"{video.where}: {error}", i)

    def views(self, i: int) -> Tensor:
        """All views of the i-th video, uint8 (V, T, C, S, S).

        Errors: ``DataError`` if the video cannot be read or if the crop does not fit into its frames. The message does
        not name the line of the list.
        """
        video, modality, t = self.videos[i], self.modality, self.num_segments
        n = self.source.length(video)
        clips = CLIP_RULES[self.clip_rule].clips(n, self.clips, i)
        numbers = [number for clip in clips for number in self.order(clip, seed=i)]
        frames = modality.read(video, numbers, self.source)
        size = transforms.resized_size(*frames[0].shape[1::-1], self.resize)
        crops = transforms.test_crops(*size, self.num_crops, self.crop_size, self.crop_rule)
        views = cut(frames, size, crops, self.input_size, self.pixels, modality.is_flow)
        return modality.segments(views).unflatten(1, (-1, t)).flatten(0, 1)  # (crops, clips*T, ...) -> (V, T, ...)


class BadVideo(DataError):
    """The error of the i-th video. It can be pickled, because a worker sends it to the main process."""

    def __init__(self, message: str, index: int):
        super().__init__(message, index)
        self.message, self.index = message, index

    def __str__(self) -> str:
        return self.message


def collate_good(items: list) -> tuple[list[Tensor] | None, dict[int, str]]:
    """A batch of the items that could be read, or ``None``; and the reasons why the others could not be read."""
    good = [item for item in items if not isinstance(item, DataError)]
    return (_batch(good) if good else None), {item.index: str(item) for item in items if isinstance(item, DataError)}


def collate(items: list) -> list[Tensor] | DataError:
    """A batch, or the first error among its items."""
    return next((item for item in items if isinstance(item, DataError)), None) or _batch(items)


def _batch(items: list[tuple[Tensor, int, int]]) -> list[Tensor]:
    """Clips, labels and places of these items. The clips keep their memory layout, because changing it is slow."""
    if not items[0][0].movedim(-3, -1).is_contiguous():
        return default_collate(items)
    clips, *others = default_collate([(clip.movedim(-3, -1), *rest) for clip, *rest in items])
    return [clips.movedim(-1, -3), *others]
