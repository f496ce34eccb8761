"""Test checkpoints: ``python test_models.py DATASET|--video V --weights W[,W2] [--views 3x2 ...]``. See README.md."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import engine.threads  # noqa: F401  before torch, which reads these settings when it is imported

# isort: split
import torch

from data import DataError, DatasetConfig, Video, load_dataset_config, open_one_video, read_list
from data.sampling import AS_IT_IS, FrameOrder
from engine import config, distributed, log
from engine.config import ConfigError
from engine.evaluate import check_finite, score
from engine.flags import parse_arguments
from engine.loading import check_list
from engine.precision import Precision
from engine.protocols import add_view_flags, describe_protocols
from engine.published import FinishedTest, load_published, published_line
from engine.testing import (
    Member,
    average_kind,
    average_members,
    build_members,
    order_table,
    protocol_line,
    read_one_video,
    score_list,
)
from models import WeightsError, list_models
from reports.accuracy import accuracy, highest, percent_text
from reports.scores import ScoresError, check_writable, write_scores


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="test_models.py",
        description=__doc__,
        epilog=describe_protocols(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dataset", nargs="?", help="a name in data/ or a path to a dataset's .yaml")
    parser.add_argument(
        "--weights",
        required=True,
        action="append",
        metavar="W[,W2]",
        help="checkpoints; the scores of several are averaged; repeat the flag for a file name that contains a comma",
    )
    parser.add_argument("--model", metavar="M[,M2]", help=f"if a file does not say it: {', '.join(list_models())}")
    parser.add_argument("--num_segments", metavar="T[,T2]", help="number of frames, if a file does not say it")
    add_view_flags(parser)
    order = parser.add_argument_group("dependence on time")
    order.add_argument("--shuffle_frames", action="store_true", help="put the frames of each clip in a random order")
    order.add_argument("--reverse_frames", action="store_true", help="play each clip backwards")
    order.add_argument("--repeat_frame", type=int, metavar="K", help="repeat each clip's K-th frame (from 1) T times")
    order.add_argument("--order_table", action="store_true", help="test in all these orders, and compare the accuracy")
    ensemble = parser.add_argument_group("ensembles")
    averages = {"choices": ["logits", "softmax"], "default": "logits"}
    ensemble.add_argument("--average", **averages, help="what is averaged (default: logits, as in the released code)")
    ensemble.add_argument(
        "--member_weights", metavar="A[,B]", help="share of each member in the average (default: equal)"
    )
    parser.add_argument("--video", metavar="FILE|FOLDER", help="instead of a dataset: name the action of one video")
    parser.add_argument("--root", help="instead of the dataset's own")
    parser.add_argument("--list", help="instead of the dataset's val_list")
    parser.add_argument("--image_tmpl", help="instead of the dataset's own")
    parser.add_argument(
        "--on_bad_video", choices=["stop", "skip"], default="stop", help="skip: leave such videos out and list them"
    )
    parser.add_argument("--allow_two_labels", action="store_true", help="test although a video has two labels")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument(
        "--batch_size", type=int, default=16, help="largest number of clips in one forward pass (default 16)"
    )
    parser.add_argument("--workers", type=int, help="number of loading processes")
    formats = "as in training; fp32 (default): as published; auto: on a GPU bf16, or fp16 without bf16; on a CPU fp32"
    parser.add_argument("--precision", default="fp32", choices=config.CHOICES["precision"], help=formats)
    parser.add_argument("--scores", metavar="out.npz", help="write scores, labels and paths here")
    args = parse_arguments(parser)
    if args.batch_size < 1:
        parser.error(f"--batch_size {args.batch_size} must be at least 1")
    files = [split_files(value) or [""] for value in args.weights]
    args.weights = [file for value in files for file in value]
    if not all(args.weights):
        parser.error("--weights holds an empty name; give a file")
    if args.scores == "":
        parser.error("--scores is an empty name; give a file")
    if (args.dataset is None) == (args.video is None):
        parser.error("give either a dataset or --video")
    return args


def main(args: argparse.Namespace) -> None:
    precision = Precision(args.precision, distributed.init(args.device))
    precision.apply()
    log.setup(enabled=distributed.is_main())
    dataset, videos = None, []
    if args.video is None:
        with distributed.main_process_first():  # rank 0 draws the toy set and checks the list
            dataset = load_dataset_config(args.dataset, root=args.root, val_list=args.list, image_tmpl=args.image_tmpl)
            videos = read_list(dataset.val_list, dataset.num_classes)
            if distributed.is_main():
                check_list(dataset, videos, dataset.val_list, args.allow_two_labels)
                if args.scores:
                    check_writable(args.scores)
    with distributed.main_process_first():  # only rank 0 reports an error
        members = build_members(args, dataset)
    if dataset is None:
        name_the_action(args, members, precision)
        return
    orders = [frame_order(args)]
    if args.order_table:
        middle = FrameOrder("repeat", (members[0].recipe.num_segments + 1) // 2)
        orders = [AS_IT_IS, FrameOrder("reverse"), FrameOrder("shuffle"), middle]
    rows = [(order, *test(args, dataset, videos, members, precision, order)) for order in orders]
    if args.order_table:
        log.info(order_table([(order, result) for order, result, _ in rows]))
    if distributed.is_main():
        order, result, scored = rows[0]
        counts = {"listed": len(videos), "scored": scored}
        finished = FinishedTest(dataset.name, members, args.average, order, other_list(args), result=result, **counts)
        if line := published_line(load_published(), finished):
            log.info(line)


def other_list(args: argparse.Namespace) -> str | None:
    """``--list``, if it is another file than the dataset's own list."""
    if args.list is None:
        return None
    own = load_dataset_config(args.dataset, with_names=False, root=args.root, image_tmpl=args.image_tmpl).val_list
    return None if Path(own).resolve() == Path(args.list).resolve() else args.list


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
    videos: Sequence[Video],
    members: list[Member],
    precision: Precision,
    order: FrameOrder,
) -> tuple[dict[str, float], int]:
    """Score every video, log the accuracy and the protocol, and write the file of ``--scores``.

    Returns: the accuracy, and the number of videos that were scored.
    """
    scores, left_out = score_list(args, dataset, videos, members, precision, order)
    result = accuracy(scores.scores, scores.labels)
    for i, reason in sorted(left_out.items()):
        log.info(f"left out: {videos[i].path}: {reason}")
    missing = f", WITHOUT {len(left_out)} bad videos, listed above" if left_out else ""
    log.info(
        f"{dataset.name}, {len(scores.paths)} videos{missing}, {scores.protocol}, Top-1 {result['top1']:.2f}, "
        f"Top-5 {percent_text(result['top5'])}, mean class {result['class_accuracy']:.2f}"
    )
    if args.scores and distributed.is_main():
        path = order.file_name(args.scores) if args.order_table else Path(args.scores)
        write_scores(path, scores)
        log.info(f"scores in {path}")
    return result, len(scores.paths)


def name_the_action(args: argparse.Namespace, members: list[Member], precision: Precision) -> None:
    """Print the five most probable classes of ``--video``."""
    try:
        video, source, notes = open_one_video(args.video)
    except DataError as error:
        raise DataError(f"--video {error}") from None
    for note in notes:
        log.info(f"--video {note}")
    scores = []
    for member in members:
        dataset, clips = read_one_video(member, video, source, frame_order(args), "--video ")
        clips, model = clips.to(precision.device), member.model.to(precision.device)
        scores.append(score(model, clips, dataset, args.batch_size, precision).cpu().numpy())
        check_finite(scores[-1], [args.video], member.file)
    kind = average_kind(members, args.average)
    mean = torch.from_numpy(average_members(members, scores, kind))  # (1, K)
    probabilities = (mean if kind == "softmax" else mean.softmax(1))[0].tolist()
    names = members[0].categories or [f"class {k}" for k in range(len(probabilities))]
    seen = "; ".join(dict.fromkeys(f"{member.views}, input {member.views.input}" for member in members))
    size = f"{source.size[0]}x{source.size[1]}"
    log.info(f"{args.video}: {video.num_frames} frames, {protocol_line(members)} (frames of {size}, {seen})")
    for label in highest(mean, 5)[0].tolist():
        log.info(f"{100 * probabilities[label]:6.2f} %  {names[label]}")


def split_files(value: str) -> list[str]:
    """The files of one ``--weights``. Names are separated by commas, unless the whole text is the name of a file.

    A comma within quotes belongs to the name: ``a.pth,"b,c.pth"`` is two files.
    """
    return [value] if Path(value).is_file() else next(csv.reader([value]), [])


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, ScoresError, WeightsError, OSError))
