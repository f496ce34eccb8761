"""From the files that a dataset's authors publish to what main.py reads: frames, lists, class names and a YAML file.

``python -m scripts.prepare DATASET PATH [PATH ...]``. The paths are the downloaded files or folders that hold them:
annotation files, archives (tar, tar.gz, zip, whole or in parts such as ``-00 -01`` or ``.part0 .part1``) and videos.

* something_v1: ``*-labels.csv *-train.csv *-validation.csv`` and the archive (or folders) of frames
* something_v2: ``*-labels.json *-train.json *-validation.json`` and the webm files
* diving48: ``Diving48_V2_train.json Diving48_V2_test.json Diving48_vocab.json`` and the mp4 files
* epic55: ``EPIC_train_action_labels.csv EPIC_verb_classes.csv EPIC_noun_classes.csv`` and the videos
* finegym: ``finegym_annotation_info*.json gym99_{train,val}_element*.txt gym99_categories.txt``, or those of gym288, or
  both, and the videos (whole, cut into events, or cut into elements)
* kinetics400: ``*train.csv *val.csv`` and the clips ``<id>_<start>_<end>.mp4``
* ucf101: ``classInd.txt trainlist0?.txt testlist0?.txt`` and the avi files
* hmdb51: ``<class>_test_split?.txt`` and the avi files (RAR archives must be unpacked before)
* folder: a tree ``class/video.*``, or ``train/class/video.*`` and ``val/class/video.*``, or a CSV file ``path,label``

Frames are all frames of a video in order at its own rate, decoded by PyAV as a player shows them (turned, with square
pixels), as ``source: video`` gives them. ``--quality`` is ffmpeg's ``-q:v``: Pillow writes the JPEG files with the
quantisation tables that ffmpeg writes, and 4:2:0 chroma. ``prepared.json`` records these settings, the label version,
the class order, the counts, and the checksums of the annotation files. If a run is killed, the same command goes
on from there. Frame folders that stand in their place already are taken as they are.
"""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

from data import DataError, load_dataset_config
from data.messages import one_line, shown
from engine import distributed
from engine.flags import parse_arguments
from engine.loading import processes_and_cores
from scripts.prepare_forms import FORMS, epic55
from scripts.prepare_frames import Output, WriteError
from scripts.prepare_plan import Inputs, Plan
from scripts.prepare_run import Preparation
from scripts.prepare_tree import own_folder
from scripts.prepare_write import check_settings, settings_of, write_everything

DATASETS = (
    "something_v1",
    "something_v2",
    "diving48",
    "epic55",
    "finegym",
    "kinetics400",
    "ucf101",
    "hmdb51",
    "folder",
)
YAML_OF = {"epic55": "epic_kitchens_55_verb", "finegym": "finegym99"}  # others have their own name
PARTICIPANTS = "P26,P27,P28,P29,P30,P31"


def parse_args() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m scripts.prepare", description=__doc__, formatter_class=raw)
    parser.allow_abbrev = False
    parser.add_argument("dataset", choices=DATASETS, metavar="DATASET", help=", ".join(DATASETS))
    parser.add_argument("paths", nargs="+", metavar="PATH", help="downloaded files, or folders that hold them")
    parser.add_argument("--to", metavar="FOLDER", help="where to write; default: as data/<dataset>.yaml says")
    parser.add_argument("--keep_videos", action="store_true", help="no frame folders; training decodes the video files")
    parser.add_argument("--short_side", metavar="PX", help="resize frames (bicubic); default: the size of the video")
    parser.add_argument("--quality", default="2", help="JPEG quality as ffmpeg's -q:v, 1 (best) to 31; default 2")
    parser.add_argument("--workers", metavar="N", help="processes, 0 for none; default: one a core")
    parser.add_argument(
        "--shard", metavar="I/N", default="1/1", help="do part I of N; a last run without it writes lists"
    )
    parser.add_argument("--val", metavar="F", help="folder: the fraction of each class for validation; default 0.2")
    parser.add_argument("--seed", metavar="S", help="folder: the seed of that draw; default 0")
    parser.add_argument("--val_participants", metavar="P,P", help=f"epic55: validation videos; default {PARTICIPANTS}")
    return parse_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Prepare one dataset.

    Errors: ``DataError``, ``WriteError`` and ``OSError``, each one line.
    """
    short_side = None if args.short_side is None else number("--short_side", args.short_side, 8, 10_000)
    quality = number("--quality", args.quality, 1, 31)
    workers = processes_and_cores()[1] if args.workers is None else number("--workers", args.workers, 0, 1000)
    shard = shard_of(args.shard)
    for flag, dataset in (("val", "folder"), ("seed", "folder"), ("val_participants", "epic55")):
        if getattr(args, flag) is not None and args.dataset != dataset:
            raise DataError(f"--{flag}: is for {dataset} only; the split of {args.dataset} is published")
    to = target_of(args)
    inputs = Inputs(args.paths, [to / name for name in ("frames", "segments", "videos", "unfinished", "journal")])
    plan = plan_of(args, inputs, to)
    if args.keep_videos and (plan.has_segments or plan.frames_given):
        what = "frames, not videos" if plan.frames_given else "clips that are parts of longer videos"
        raise DataError(f"--keep_videos: {args.dataset} has {what}; prepare frame folders, without this flag")
    if not plan.frames_given and find_spec("av") is None:  # without it, every video would be skipped
        raise DataError("reading videos needs PyAV; pip install av")
    root = to / ("videos" if args.keep_videos else plan.root)
    output = Output(root, to / "unfinished", plan.image_tmpl, short_side, quality)
    to.mkdir(parents=True, exist_ok=True)
    settings = settings_of(output, args.keep_videos)
    check_settings(to, settings)
    preparation = Preparation(plan, inputs, output, args.keep_videos, shard)
    report_plan(plan, preparation, inputs, to)
    preparation.run(workers)
    if shard[1] > 1:
        done = sum(path in preparation.finished for path in plan.clips)
        skipped = len(preparation.skipped)
        print(
            f"shard {args.shard} is done: {done} of {len(plan.clips)} videos are finished, {skipped} of this shard "
            "were skipped; after all shards, run this command without --shard, because that run writes the lists"
        )
        return
    print(write_everything(plan, preparation, to, settings))


def target_of(args: argparse.Namespace) -> Path:
    if args.to is not None:
        return Path(args.to)
    if args.dataset == "folder":
        return Path(f"{os.path.normpath(args.paths[0]).removesuffix('.csv')}_prepared")
    return Path(load_dataset_config(YAML_OF.get(args.dataset, args.dataset)).root).parent


def plan_of(args: argparse.Namespace, inputs: Inputs, to: Path) -> Plan:
    if args.dataset == "folder":
        return own_folder(inputs, fraction(args.val), number("--seed", args.seed or "0", 0, 2**32), to.resolve().name)
    if args.dataset == "epic55":
        return epic55(inputs, (args.val_participants or PARTICIPANTS).split(","))
    return FORMS[args.dataset](inputs)


def report_plan(plan: Plan, preparation: Preparation, inputs: Inputs, to: Path) -> None:
    """Say what was found, before the long work begins."""
    print(f"{plan.label_version}; class order: {plan.class_order}")
    for note in plan.notes:
        print(note)
    for lists in plan.lists:
        counts = f"{len(lists.train)} training and {len(lists.val)} validation videos"
        print(f"{lists.yaml}: {counts}, {lists.num_classes} classes")
        for split, count in lists.published.items():
            if count != len(getattr(lists, split)):
                given = len(getattr(lists, split))
                print(f"warning: {lists.yaml}: the {split} list has {given} videos, the published one {count}")
    for archive in preparation.archives:
        print(f"archive {archive}")
    for file in inputs.files:
        if file.suffix.lower() in (".rar", ".7z"):
            print(f"warning: {one_line(file)} is not read; unpack it and give the folder")
    print(f"writing to {one_line(to)}", flush=True)


def number(flag: str, text: str, least: int, most: int) -> int:
    """A flag's whole number.

    Errors: ``DataError``.
    """
    if text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most:
        return int(text)
    raise DataError(f"{flag} {shown(text)}: must be a whole number from {least} to {most}")


def fraction(text: str | None) -> float:
    """The value of ``--val``.

    Errors: ``DataError``.
    """
    try:
        value = float(text or 0.2)
    except ValueError:
        value = 0.0
    if 0 < value < 1:
        return value
    raise DataError(f"--val {shown(text)}: must be a number between 0 and 1, such as 0.2")


def shard_of(text: str) -> tuple[int, int]:
    """I and N of ``I/N``.

    Errors: ``DataError``.
    """
    words = text.split("/")
    if len(words) == 2 and all(word.isascii() and word.isdecimal() and len(word) < 7 for word in words):
        index, total = map(int, words)
        if 1 <= index <= total:
            return index, total
    raise DataError(f"--shard {shown(text)}: must be I/N with I from 1 to N, such as 1/4")


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (DataError, WriteError, OSError))
