"""Test checkpoints: ``python test_models.py DATASET|--video V --weights W[,W2] [--views 3x2 ...]``. See README.md."""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch

from data import DataError, DatasetConfig, load_dataset_config, open_one_video, read_list
from data.sampling import AS_IT_IS, FrameOrder
from engine import config, distributed, log
from engine.config import ConfigError
from engine.evaluate import check_finite, evaluate, score
from engine.flags import parse_arguments
from engine.loading import check_list
from engine.metrics import accuracy, shown
from engine.precision import Precision
from engine.testing import (
    GEOMETRY,
    PROTOCOLS,
    Member,
    Views,
    average,
    build_member,
    choose_views,
    make_test_set,
    protocol_line,
)
from models import WeightsError, list_models


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="test_models.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("dataset", nargs="?", help="a name in data/ or a path to a dataset's .yaml")
    parser.add_argument(
        "--weights",
        required=True,
        action="append",
        metavar="W[,W2]",
        help="checkpoints; several are averaged; may be given several times, as for a name that holds a comma",
    )
    parser.add_argument("--model", metavar="M[,M2]", help=f"what a file does not say: {', '.join(list_models())}")
    parser.add_argument("--num_segments", metavar="T[,T2]", help="their frames; our own files say it themselves")
    views = parser.add_argument_group("views", "what is not given comes from the protocol, or else the model's recipe")
    views.add_argument("--protocol", metavar="P[,P2]", help=f"as released: {', '.join(PROTOCOLS)}")
    views.add_argument("--views", metavar="CROPSxCLIPS", help="1, 3, 5 or 10 crops x 1, 2 or 10 clips")
    views.add_argument("--resize", metavar="S|HxW", help="short side, or height x width, of the whole frame")
    views.add_argument("--crop", type=int, metavar="C", help="side of the crop cut from that")
    views.add_argument("--input", type=int, metavar="I", help="side that the network sees")
    views.add_argument("--short_videos", choices=config.CHOICES["test_short_videos"], help="rule for n <= T frames")
    views.add_argument(
        "--mirrored_scores",
        choices=["swap", "keep"],
        default="swap",
        help="10 crops: in the mirrored ones left and right classes exchange their scores, or keep them as released "
        "(default: swap, where class names tell the pairs)",
    )
    order = parser.add_argument_group("dependence on time")
    order.add_argument("--shuffle_frames", action="store_true", help="each clip's frames in a random order")
    order.add_argument("--reverse_frames", action="store_true", help="each clip backwards")
    order.add_argument("--repeat_frame", type=int, metavar="K", help="each clip is its K-th frame (from 1) T times")
    order.add_argument("--order_table", action="store_true", help="all of these, and what of the accuracy needs order")
    ensemble = parser.add_argument_group("ensembles")
    averages = {"choices": ["logits", "softmax"], "default": "logits"}
    ensemble.add_argument("--average", **averages, help="what is averaged (default: logits, as released)")
    ensemble.add_argument("--member_weights", metavar="A[,B]", help="of the members in the average (default: equal)")
    parser.add_argument("--video", metavar="FILE|FOLDER", help="instead of a dataset: name the action of one video")
    parser.add_argument("--root", help="instead of the dataset's own")
    parser.add_argument("--list", help="instead of the dataset's val_list")
    parser.add_argument("--image_tmpl", help="instead of the dataset's own")
    parser.add_argument("--on_bad_video", choices=["stop", "skip"], default="stop", help="skip: leave out, and list")
    parser.add_argument("--allow_two_labels", action="store_true", help="test although a video has two labels")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")
    parser.add_argument("--batch_size", type=int, default=16, help="most clips in one forward pass (default 16)")
    parser.add_argument("--workers", type=int, help="loading processes")
    parser.add_argument("--precision", default="fp32", choices=config.CHOICES["precision"], help="default: fp32")
    parser.add_argument("--scores", metavar="out.npz", help="write scores, labels and paths here")
    args = parse_arguments(parser)
    if args.batch_size < 1:
        parser.error(f"--batch_size {args.batch_size} must be at least 1")
    args.weights = [file for value in args.weights for file in split_files(value)]
    if not all(args.weights) or not args.weights:
        parser.error("--weights holds an empty name; give a file")
    if (args.dataset is None) == (args.video is None):
        parser.error("give either a dataset or --video")
    return args


def main(args: argparse.Namespace) -> None:
    precision = Precision(args.precision, distributed.init(args.device))
    log.setup(enabled=distributed.is_main())
    dataset, videos = None, []
    if args.video is None:
        with distributed.main_process_first():  # it alone draws the toy set
            dataset = load_dataset_config(args.dataset, root=args.root, val_list=args.list, image_tmpl=args.image_tmpl)
            videos = read_list(dataset.val_list, dataset.num_classes)
            if distributed.is_main():
                check_list(dataset, videos, dataset.val_list, args.allow_two_labels)
                if args.scores:
                    check_writable(Path(args.scores))
    with distributed.main_process_first():  # it alone says what does not fit
        members, views = build_members(args, dataset)
        weights = member_weights(args, len(members))
    if dataset is None:
        name_the_action(args, members, views, weights, precision)
        return

    orders = [frame_order(args)]
    if args.order_table:
        middle = FrameOrder("repeat", (members[0].recipe.num_segments + 1) // 2)
        orders = [AS_IT_IS, FrameOrder("reverse"), FrameOrder("shuffle"), middle]
    rows = [(order, test(args, dataset, videos, members, views, weights, precision, order)) for order in orders]
    if args.order_table:
        print_order_table(rows)


def build_members(args: argparse.Namespace, dataset: DatasetConfig | None) -> tuple[list[Member], list[Views]]:
    """The networks of ``--weights`` and the views of each; one model, frame count or protocol stands for all."""
    weights, columns = args.weights, []
    for flag in ("model", "num_segments", "protocol"):
        given = getattr(args, flag)
        values = given.split(",") if given else [None]
        if len(values) not in (1, len(weights)):
            raise ConfigError(f"--{flag} {given} is {len(values)}, --weights are {len(weights)}; give one or as many")
        columns.append(values * len(weights) if len(values) == 1 else values)
    members, views = [], []
    for file, name, frames, protocol in zip(weights, *columns, strict=True):
        member = build_member(file, name, frames, dataset)
        geometry = {key: getattr(args, key) for key in GEOMETRY}
        members.append(member)
        views.append(choose_views(member.recipe, protocol, **geometry))
    return members, views


def member_weights(args: argparse.Namespace, count: int) -> list[float]:
    """The weight of each member in the average."""
    if args.member_weights is None:
        return [1.0] * count
    try:
        weights = [float(text) for text in args.member_weights.split(",")]
    except ValueError:
        weights = []
    if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ConfigError(f"--member_weights {args.member_weights} must be {count} numbers, such as 2,1 for two")
    return weights


def frame_order(args: argparse.Namespace) -> FrameOrder:
    given = [args.shuffle_frames, args.reverse_frames, args.repeat_frame is not None, args.order_table]
    if sum(given) > 1:
        raise ConfigError("give one of --shuffle_frames, --reverse_frames, --repeat_frame and --order_table")
    if args.repeat_frame is not None:
        return FrameOrder("repeat", args.repeat_frame)
    return FrameOrder("shuffle") if args.shuffle_frames else FrameOrder("reverse") if args.reverse_frames else AS_IT_IS


def test(
    args: argparse.Namespace,
    dataset: DatasetConfig,
    videos: list,
    members: list[Member],
    views: list[Views],
    weights: list[float],
    precision: Precision,
    order: FrameOrder,
) -> dict[str, float]:
    """Scores of every video, the line that states them with their protocol, and the file of ``--scores``."""
    scores, left_out = [], {}
    for member, geometry in zip(members, views, strict=True):
        test_set = make_test_set(member, geometry, videos, dataset.open_source(), order)
        log.info(f"{member.weights}: {member.model.arch}, {geometry}, {len(videos)} videos{order.suffix}")
        workers = member.recipe.workers if args.workers is None else config.coerce("workers", args.workers)
        model = member.model.to(precision.device)
        loading = {"batch_size": args.batch_size, "workers": workers, "print_every": member.recipe.print_every}
        skip_bad = args.on_bad_video == "skip"
        part, _, bad = evaluate(model, test_set, precision, **loading, name=member.weights, skip_bad=skip_bad)
        scores.append(part)
        left_out |= bad
    kept = [i for i in range(len(videos)) if i not in left_out]
    scores = [part[kept] for part in scores]
    whole = average(scores, weights, args.average)
    labels = np.array([videos[i].label for i in kept])
    result = accuracy(whole, labels)
    names = ", ".join(f"{member.model.arch} ({geometry})" for member, geometry in zip(members, views, strict=True))
    protocol = protocol_line(members, views) + order.suffix
    how = f", mean {args.average} weighted {args.member_weights or 'equally'}" if len(members) > 1 else ""
    missing = f", WITHOUT {len(left_out)} bad videos, listed above" if left_out else ""
    for i, reason in sorted(left_out.items()):
        log.info(f"left out: {videos[i].path}: {reason}")
    log.info(
        f"{dataset.name}, {len(kept)} videos{missing}, {names}{how}: {protocol}, Top-1 {result['top1']:.2f}, "
        f"Top-5 {shown(result['top5'])}, mean class {result['class_accuracy']:.2f}"
    )
    if args.scores and distributed.is_main():
        content = {
            "scores": whole,
            "labels": labels,
            "paths": np.array([videos[i].path for i in kept]),
            "members": np.stack(scores),
            "member_names": np.array([f"{m.model.arch} {m.recipe.num_segments} {m.weights}" for m in members]),
            "average": np.array(args.average),
            "protocol": np.array(f"{names}{how}: {protocol}"),
        }
        if members[0].categories:
            content["categories"] = np.array(members[0].categories)
        path = order.file_name(args.scores) if args.order_table else Path(args.scores)
        write_scores(path, content)
        log.info(f"scores in {path}")
    return result


def print_order_table(rows: list[tuple[FrameOrder, dict[str, float]]]) -> None:
    """How much of the accuracy is lost without the order of frames."""
    whole = rows[0][1]["top1"]
    log.info("frames                 Top-1   Top-5   of Top-1 lost")
    for order, result in rows:
        lost = f"{100 * (1 - result['top1'] / whole):.1f} %" if whole else "-"
        log.info(f"{order!s:<20} {result['top1']:7.2f} {shown(result['top5'], '-'):>7}   {lost:>13}")


def name_the_action(
    args: argparse.Namespace, members: list[Member], views: list[Views], weights: list[float], precision: Precision
) -> None:
    """Print the five most probable classes of ``--video``."""
    try:
        video, source, notes = open_one_video(args.video)
    except DataError as error:
        raise DataError(f"--video {error}") from None
    for note in notes:
        log.info(f"--video {note}")
    scores = []
    for member, geometry in zip(members, views, strict=True):
        if member.recipe.modality == "Flow":
            raise ConfigError(f"{member.weights}: sees optical flow, which a video does not hold; use an RGB network")
        short_side = min(source.size)
        if geometry.resize is None and short_side >= 2 * geometry.crop:
            raise ConfigError(
                f"--video {args.video}: its frames are {source.size[0]}x{source.size[1]}, and without a resize "
                f"{member.weights} would see a crop of {geometry.crop} only; add --resize {geometry.crop}"
            )
        dataset = make_test_set(member, geometry, [video], source, frame_order(args))
        item = dataset[0]
        if isinstance(item, DataError):
            raise DataError(f"--video {item}")
        clips, model = item[0], member.model.to(precision.device)
        scores.append(score(model, clips[None].to(precision.device), dataset, args.batch_size, precision))
        check_finite(scores[-1], [args.video], member.weights)
    mean = torch.from_numpy(average(scores, weights, args.average))[0]
    probabilities = mean if args.average == "softmax" else mean.softmax(0)
    names = members[0].categories or [f"class {k}" for k in range(len(mean))]
    seen = "; ".join(dict.fromkeys(f"{geometry}, input {geometry.input}" for geometry in views))
    size = f"{source.size[0]}x{source.size[1]}"
    log.info(f"{args.video}: {video.num_frames} frames, {protocol_line(members, views)} (frames of {size}, {seen})")
    for probability, label in zip(*(values.tolist() for values in probabilities.topk(min(5, len(mean)))), strict=True):
        log.info(f"{100 * probability:6.2f} %  {names[label]}")


def split_files(value: str) -> list[str]:
    """The files of one ``--weights``: names between commas, unless the whole is a file. A quoted name keeps its comma.

    ``a.pth,"b,c.pth"`` is two files.
    """
    return [value] if Path(value).is_file() else next(csv.reader([value]), [])


def check_writable(path: Path) -> None:
    """Errors: ``ConfigError`` if scores could not be written, before they are computed."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        part.open("wb").close()
        part.unlink()
    except OSError as error:
        raise ConfigError(f"--scores {path}: cannot be written ({error})") from error


def write_scores(path: Path, content: dict[str, np.ndarray]) -> None:
    part = path.with_name(f"{path.name}.part")  # a file that has its name is whole
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:  # a file object, so that numpy does not add an ending of its own
            np.savez(file, **content)
        part.rename(path)
    except OSError as error:
        raise ConfigError(f"--scores {path}: cannot be written ({error})") from error


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, WeightsError, OSError))
