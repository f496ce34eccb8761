"""Parts of a test: its members (a network with its views and its share in the average), their scores, and log lines."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data import DataError, DatasetConfig, EvalDataset, FrameSource, Video
from data.labels import mirror_pairs
from data.modality import Modality
from data.one_video import OneVideo
from data.pixels import describe as describe_pixels
from data.sampling import AS_IT_IS, FrameOrder
from models import load_weights
from models.video_network import VideoNetwork
from models.weights import read_checkpoint
from reports.accuracy import percent_text
from reports.scores import Scores

from . import config
from .config import ConfigError, Recipe
from .evaluate import evaluate
from .log import info
from .network import build_from_checkpoint, channels_last, run_settings
from .precision import Precision
from .protocols import GEOMETRY, Views, choose_views, find_protocol


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
        """The text "x crops x clips @ input", and in brackets what is unusual."""
        return self.views.protocol("swapped" if self.mirror_pairs else "kept")

    @property
    def gives_probabilities(self) -> bool:
        """Whether its scores are probabilities and not logits."""
        return self.views.view_average == "softmax"


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
        found = find_protocol(protocol)
        units = args.units if args.units is not None or found is None else found.units
        model, recipe, categories = load_network(file, name, frames, dataset, units)
        members.append(Member(file, model, recipe, categories, choose_views(recipe, protocol, **geometry), share))
    if args.average == "logits" and len({member.gives_probabilities for member in members}) > 1:
        raise ConfigError(
            "the scores of some members are logits and those of others are probabilities, because they average their "
            "views differently; give --average softmax, or one --view_average for all"
        )
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
    file: str, name: str | None, frames: str | None, dataset: DatasetConfig | None, units: int | None = None
) -> tuple[VideoNetwork, Recipe, list[str] | None]:
    """The network of a weights file, its recipe, and its class names. The user's flags fill what the file lacks.

    The network's memory is channels_last if its recipe says so, as in training.
    ``units`` is V4D's number of units of a test clip, if it is another than in training.

    Errors: ``ConfigError`` and ``WeightsError``.
    """
    checkpoint = read_checkpoint(file)
    frames = None if frames is None else config.coerce("num_segments", frames)
    model, recipe = build_from_checkpoint(checkpoint, file, name, frames, dataset, units)
    categories = run_settings(checkpoint)["dataset"].get("categories")
    if dataset is not None:
        if categories and dataset.categories and categories != dataset.categories:
            raise ConfigError(
                f"{file}: was trained with other class names or another order of them than dataset {dataset.name}; "
                "its scores would be read under wrong labels"
            )
        categories = dataset.categories or categories
    info(str(load_weights(model, checkpoint, name=file)))
    if recipe.channels_last:
        channels_last(model)
    return model.eval(), recipe, categories


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
        clip_rule=views.clip_rule,
        crop_rule=views.crop_rule,
        view_average=views.view_average,
        units=member.recipe.units,
    )


def read_one_video(
    member: Member, video: Video, source: OneVideo, order: FrameOrder = AS_IT_IS, flag: str = ""
) -> tuple[EvalDataset, torch.Tensor]:
    """The views of a video that ``open_one_video`` opened, as the member sees them.

    Returns the dataset of this one video, and its clips uint8 (1, V, T, C, S, S). ``flag`` stands before the video's
    name in errors.

    Errors: ``DataError`` if the video cannot be read; ``ConfigError`` if the member cannot see it.
    """
    views = member.views
    if member.recipe.modality == "Flow":
        raise ConfigError(f"{member.file}: sees optical flow, which a video does not hold; use an RGB network")
    if views.resize is None and min(source.size) >= 2 * views.crop:
        raise ConfigError(
            f"{flag}{video.path}: its frames are {source.size[0]}x{source.size[1]}, and without a resize "
            f"{member.file} would see a crop of {views.crop} only; add --resize {views.crop}"
        )
    dataset = make_test_set(member, [video], source, order)
    item = dataset[0]
    if isinstance(item, DataError):
        raise DataError(f"{flag}{item}")
    return dataset, item[0][None]


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
    layouts = dict.fromkeys("channels_last" if m.recipe.channels_last else "contiguous" for m in members)
    info(f"precision: {precision.name}; memory layout: {', '.join(layouts)}")
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
    kind = average_kind(members, args.average)
    how = f", mean {kind} weighted {args.member_weights or 'equally'}" if len(members) > 1 else ""
    scores = Scores(
        scores=average_members(members, parts, kind),
        labels=np.array([videos[i].label for i in kept]),
        paths=[videos[i].path for i in kept],
        average=kind,
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


def average_kind(members: list[Member], kind: str) -> str:
    """Whether the scores of a test are mean logits (``"logits"``) or probabilities (``"softmax"``).

    ``kind`` is the user's choice for logits.
    """
    return "softmax" if any(member.gives_probabilities for member in members) else kind


def average_members(members: list[Member], parts: list[np.ndarray], kind: str) -> np.ndarray:
    """The mean (N,K) of the members' scores ``parts`` (N,K), weighted by their shares.

    ``kind`` is the result of ``average_kind``. If it is ``"softmax"``, logits become probabilities first.
    """
    ready = [
        part if kind == "logits" or member.gives_probabilities else average([part], [1], kind)
        for member, part in zip(members, parts, strict=True)
    ]
    return average(ready, [member.share for member in members], "logits")


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
