"""Members of a test: a network with its weights, the views it sees, and what it scores."""

from dataclasses import dataclass

import numpy as np
import torch

from data import DatasetConfig, EvalDataset, FrameSource
from data.labels import mirror_pairs
from data.modality import Modality
from data.sampling import FrameOrder
from data.transforms import MIRRORED
from models import load_weights
from models.resnet import VideoResNet
from models.weights import read_checkpoint

from . import config
from .config import ConfigError, Recipe
from .log import info
from .network import build_from_file, run_settings

GEOMETRY = ("views", "resize", "crop", "input", "short_videos", "mirrored_scores")
# What the released code tests with, by name; flags win.
PROTOCOLS = {
    "rsa": {"views": "1x1", "resize": "240x320", "crop": 224, "input": 224, "short_videos": "first_frame"},
    "sda": {"views": "1x1", "resize": "256", "crop": 224, "input": 224, "short_videos": "spread"},
    "sda_full": {"views": "1x1", "resize": "256", "crop": 256, "input": 224, "short_videos": "spread"},
}


@dataclass
class Member:
    """A network that is tested."""

    weights: str
    model: VideoResNet
    recipe: Recipe  # it was trained by, or its model's if the file does not say
    categories: list[str] | None  # class names in label order, if the file or the dataset says

    @property
    def modality(self) -> Modality:
        return Modality(self.recipe.modality, self.recipe.data_length)


def build_member(weights: str, name: str | None, frames: str | None, dataset: DatasetConfig | None) -> Member:
    """A model with its weights. What the file does not tell is asked for. Errors: ``ConfigError``, ``WeightsError``."""
    checkpoint = read_checkpoint(weights)
    frames = None if frames is None else config.coerce("num_segments", frames)
    model, recipe = build_from_file(checkpoint, weights, name, frames, dataset)
    categories = run_settings(checkpoint)["dataset"].get("categories")
    if dataset is not None:
        if categories and dataset.categories and categories != dataset.categories:
            raise ConfigError(
                f"{weights}: was trained with other class names or another order of them than dataset {dataset.name}; "
                "its scores would be read under wrong labels"
            )
        categories = dataset.categories or categories
    info(str(load_weights(model, checkpoint, name=weights)))
    return Member(weights, model.eval(), recipe, categories)


@dataclass
class Views:
    """The geometry of a test: what was not given comes from a protocol or the recipe."""

    crops: int
    clips: int
    resize: config.Size
    crop: int
    input: int
    short_videos: str
    mirrored_scores: str  # "swap" or "keep"

    def __str__(self) -> str:
        size = self.resize
        shown = "as stored" if size is None else "x".join(map(str, size)) if isinstance(size, tuple) else size
        return f"resize {shown}, crop {self.crop}, {self.short_videos}"

    def exchanged(self, member: Member) -> dict[int, int]:
        """label -> label with which it exchanges its score in mirrored crops."""
        return mirror_pairs(member.categories) if self.mirrored_scores == "swap" else {}

    def protocol(self, member: Member) -> str:
        """Crops x clips @ input, and what is done to scores of mirrored crops, where there are any."""
        text = f"x{self.crops}x{self.clips} @{self.input}"
        if self.crops in MIRRORED:
            text += f" (mirrored scores {'swapped' if self.exchanged(member) else 'kept'})"
        return text


def choose_views(recipe: Recipe, protocol: str | None, **given: object) -> Views:
    """``given``: ``GEOMETRY``, each wins over the protocol, which wins over the recipe."""
    own = {
        "views": recipe.test_views,
        "resize": recipe.test_resize,
        "crop": recipe.test_crop,
        "input": recipe.input_size,
        "short_videos": recipe.test_short_videos,
        "mirrored_scores": "swap",
    }
    if protocol is not None:
        config.check_key(protocol, PROTOCOLS, "protocol")
        own |= PROTOCOLS[protocol]
    values = own | {key: value for key, value in given.items() if value is not None}
    crops, clips = config.parse_views(str(values["views"]))
    return Views(
        crops,
        clips,
        config.parse_size(values["resize"]),
        config.coerce("test_crop", values["crop"]),
        config.coerce("input_size", values["input"]),
        str(values["short_videos"]),
        str(values["mirrored_scores"]),
    )


def make_test_set(member: Member, views: Views, videos: list, source: FrameSource, order: FrameOrder) -> EvalDataset:
    """The views of every video as the member takes them.

    Errors: ``ConfigError`` for an order that no clip can have.
    """
    frames = member.recipe.num_segments
    if order.name == "repeat" and not 1 <= order.frame <= frames:
        raise ConfigError(f"--repeat_frame {order.frame} is not one of the {frames} frames of a clip")
    return EvalDataset(
        videos,
        source,
        frames,
        resize=views.resize,
        crop_size=views.crop,
        input_size=views.input,
        short_videos=views.short_videos,
        num_crops=views.crops,
        num_clips=views.clips,
        modality=member.modality,
        order=order,
        mirror_pairs=views.exchanged(member),
    )


def protocol_line(members: list[Member], views: list[Views]) -> str:
    """Frames x crops x clips @ input: ``16x3x2 @224``; frame counts of members with the same views in one bracket."""
    frames: dict[str, list[str]] = {}
    for member, geometry in zip(members, views, strict=True):
        frames.setdefault(geometry.protocol(member), []).append(str(member.recipe.num_segments))
    return " + ".join(
        (counts[0] if len(counts) == 1 else f"({'+'.join(counts)})") + protocol for protocol, counts in frames.items()
    )


def average(members: list[np.ndarray], weights: list[float], kind: str) -> np.ndarray:
    """Scores (N,K) of an ensemble from those of its members (N,K), weighted.

    ``kind``: ``"logits"``, as released, or ``"softmax"``, the mean of each member's probabilities.
    """
    if kind == "softmax":
        members = [torch.from_numpy(scores).softmax(1).numpy() for scores in members]
    total = sum(weight * scores.astype(np.float64) for weight, scores in zip(weights, members, strict=True))
    return (total / sum(weights)).astype(np.float32)
