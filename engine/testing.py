"""Parts of a test: its members (a network with its views and its share in the average), their scores, and log lines."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data import DatasetConfig, EvalDataset, FrameSource, Video
from data.labels import mirror_pairs
from data.modality import Modality
from data.pixels import FAITHFUL
from data.pixels import describe as describe_pixels
from data.sampling import FrameOrder
from data.transforms import MIRRORED
from models import load_weights
from models.video_network import VideoNetwork
from models.weights import read_checkpoint
from reports.accuracy import percent_text
from reports.scores import Scores

from . import config
from .config import ConfigError, Recipe
from .evaluate import evaluate
from .log import info
from .network import build_from_checkpoint, run_settings
from .precision import Precision

GEOMETRY = ("views", "resize", "crop", "input", "short_videos", "mirrored_scores", "pixels")
_SDA = {"views": "1x1", "resize": "256", "crop": 224, "input": 224, "short_videos": "spread", "pixels": FAITHFUL}
# The settings of the released tests, by name. Flags override them.
PROTOCOLS = {
    "rsa": _SDA | {"resize": "240x320", "short_videos": "first_frame"},
    "sda": _SDA,
    "sda_full": _SDA | {"crop": 256},
}


@dataclass
class Views:
    """The complete geometry of a test. ``choose_views`` fills in the values that were not given."""

    crops: int
    clips: int
    resize: config.Size
    crop: int
    input: int
    short_videos: str
    mirrored_scores: str  # "swap" or "keep"
    pixels: str  # "faithful" or "fast"

    def __str__(self) -> str:
        size = self.resize
        shown = "as stored" if size is None else "x".join(map(str, size)) if isinstance(size, tuple) else size
        pixels = "" if self.pixels == FAITHFUL else f", {self.pixels} pixels"
        return f"resize {shown}, crop {self.crop}, {self.short_videos}{pixels}"


@dataclass
class Member:
    """A network of a test. An ensemble has several members."""

    file: str  # of its weights
    model: VideoNetwork
    recipe: Recipe  # of its training, or the model's recipe if the file does not hold one
    categories: list[str] | None  # class names in label order, if the file or the dataset has them
    views: Views
    share: float  # in the average; shares need not sum to 1

    @property
    def modality(self) -> Modality:
        return Modality(self.recipe.modality, self.recipe.data_length)

    @property
    def mirror_pairs(self) -> dict[int, int]:
        """label -> the label with which it exchanges scores in mirrored crops."""
        return mirror_pairs(self.categories) if self.views.mirrored_scores == "swap" else {}

    @property
    def protocol(self) -> str:
        """The text "crops x clips @ input".

        If some crops are mirrored, it also says whether their scores are swapped.
        """
        text = f"x{self.views.crops}x{self.views.clips} @{self.views.input}"
        if self.views.crops in MIRRORED:
            text += f" (mirrored scores {'swapped' if self.mirror_pairs else 'kept'})"
        return text


def build_members(args: argparse.Namespace, dataset: DatasetConfig | None) -> list[Member]:
    """The members of a test, from its flags. A single ``--model``, ``--num_segments`` or ``--protocol`` is for all.

    Errors: ``ConfigError`` and ``WeightsError``. They name the problem and the remedy.
    """
    files, columns = args.weights, []
    for flag in ("model", "num_segments", "protocol"):
        given = getattr(args, flag)
        values = given.split(",") if given else [None]
        if len(values) not in (1, len(files)):
            raise ConfigError(f"--{flag} {given} is {len(values)}, --weights are {len(files)}; give one or as many")
        columns.append(values * len(files) if len(values) == 1 else values)
    shares = parse_shares(args.member_weights, len(files))
    geometry = {key: getattr(args, key) for key in GEOMETRY}
    members = []
    for file, name, frames, protocol, share in zip(files, *columns, shares, strict=True):
        model, recipe, categories = load_network(file, name, frames, dataset)
        members.append(Member(file, model, recipe, categories, choose_views(recipe, protocol, **geometry), share))
    return members


def parse_shares(text: str | None, count: int) -> list[float]:
    """The share of each member from ``--member_weights``, such as ``"2,1"``. ``None`` means equal shares.

    Errors: ``ConfigError`` unless there are ``count`` numbers that are not negative and have a finite sum above 0.
    """
    if text is None:
        return [1.0] * count
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != count or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise ConfigError(f"--member_weights {text} must be {count} numbers, such as 2,1 for two")
    return shares


def load_network(
    file: str, name: str | None, frames: str | None, dataset: DatasetConfig | None
) -> tuple[VideoNetwork, Recipe, list[str] | None]:
    """The network of a weights file, its recipe, and its class names. The user's flags fill what the file lacks.

    Errors: ``ConfigError`` and ``WeightsError``.
    """
    checkpoint = read_checkpoint(file)
    frames = None if frames is None else config.coerce("num_segments", frames)
    model, recipe = build_from_checkpoint(checkpoint, file, name, frames, dataset)
    categories = run_settings(checkpoint)["dataset"].get("categories")
    if dataset is not None:
        if categories and dataset.categories and categories != dataset.categories:
            raise ConfigError(
                f"{file}: was trained with other class names or another order of them than dataset {dataset.name}; "
                "its scores would be read under wrong labels"
            )
        categories = dataset.categories or categories
    info(str(load_weights(model, checkpoint, name=file)))
    return model.eval(), recipe, categories


def choose_views(recipe: Recipe, protocol: str | None, **given: object) -> Views:
    """The views of a test. Values come from the recipe; the protocol overrides them; ``given`` values override both."""
    own = {
        "views": recipe.test_views,
        "resize": recipe.test_resize,
        "crop": recipe.test_crop,
        "input": recipe.input_size,
        "short_videos": recipe.test_short_videos,
        "mirrored_scores": "swap",
        "pixels": recipe.pixels,
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
        str(values["pixels"]),
    )


def make_test_set(member: Member, videos: Sequence[Video], source: FrameSource, order: FrameOrder) -> EvalDataset:
    """The views of every video as the member sees them.

    Errors: ``ConfigError`` if clips cannot have the asked order.
    """
    views, frames = member.views, member.recipe.num_segments
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
        mirror_pairs=member.mirror_pairs,
        pixels=views.pixels,
    )


def score_list(
    args: argparse.Namespace,
    dataset: DatasetConfig,
    videos: Sequence[Video],
    members: list[Member],
    precision: Precision,
    order: FrameOrder,
) -> tuple[Scores, dict[int, str]]:
    """The scores of the videos that can be read, and the reasons for the other videos by their place in the list.

    Errors: the errors of ``evaluate``.
    """
    parts, left_out, source = [], {}, dataset.open_source()
    for line in dict.fromkeys(describe_pixels(member.views.pixels) for member in members):
        info(line)
    for member in members:
        test_set = make_test_set(member, videos, source, order)
        info(f"{member.file}: {member.model.arch}, {member.views}, {len(videos)} videos{order.suffix}")
        part, _, unread = evaluate(
            member.model.to(precision.device),
            test_set,
            precision,
            args.batch_size,
            member.recipe.workers if args.workers is None else config.coerce("workers", args.workers),
            member.recipe.print_every,
            name=member.file,
            skip_bad=args.on_bad_video == "skip",
        )
        parts.append(part)
        left_out |= unread
    kept = [i for i in range(len(videos)) if i not in left_out]
    parts = [part[kept] for part in parts]
    names = ", ".join(f"{member.model.arch} ({member.views})" for member in members)
    how = f", mean {args.average} weighted {args.member_weights or 'equally'}" if len(members) > 1 else ""
    scores = Scores(
        scores=average(parts, [member.share for member in members], args.average),
        labels=np.array([videos[i].label for i in kept]),
        paths=[videos[i].path for i in kept],
        average=args.average,
        protocol=f"{names}{how}: {protocol_line(members)}{order.suffix}",
        categories=members[0].categories or None,
        members=np.stack(parts),
        member_names=[f"{m.model.arch} {m.recipe.num_segments} {m.file}" for m in members],
    )
    return scores, left_out


def protocol_line(members: list[Member]) -> str:
    """The text "frames x crops x clips @ input", such as ``16x3x2 @224``.

    The frame counts of members with the same views are in one bracket: ``(8+16)x3x2 @224``.
    """
    frames: dict[str, list[str]] = {}
    for member in members:
        frames.setdefault(member.protocol, []).append(str(member.recipe.num_segments))
    return " + ".join(
        (counts[0] if len(counts) == 1 else f"({'+'.join(counts)})") + protocol for protocol, counts in frames.items()
    )


def average(members: list[np.ndarray], shares: list[float], kind: str) -> np.ndarray:
    """The mean (N,K) of the members' scores (N,K), weighted by their shares.

    ``kind`` is ``"logits"``, as released, or ``"softmax"``, which averages the members' probabilities.
    """
    if kind == "softmax":
        members = [torch.from_numpy(scores).softmax(1).numpy() for scores in members]
    total = sum(share * scores.astype(np.float64) for share, scores in zip(shares, members, strict=True))
    return (total / sum(shares)).astype(np.float32)


def order_table(rows: list[tuple[FrameOrder, dict[str, float]]]) -> str:
    """A table of the accuracy for each order of frames, with the share of Top-1 lost. The first order is unchanged."""
    whole = rows[0][1]["top1"]
    lines = ["frames                 Top-1   Top-5   of Top-1 lost"]
    for order, result in rows:
        lost = f"{100 * (1 - result['top1'] / whole):.1f} %" if whole else "-"
        lines.append(f"{order!s:<20} {result['top1']:7.2f} {percent_text(result['top5'], '-'):>7}   {lost:>13}")
    return "\n".join(lines)
