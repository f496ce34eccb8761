"""A dataset of one's own: a tree ``class/video.*``, or a CSV file ``path,label``."""

import csv
import random
import re
from collections import Counter
from pathlib import Path

from data import DataError
from data.messages import one_line, shown
from scripts.prepare_plan import Clip, Inputs, Lists, Place, Plan, clip_path, text_of

VIDEO_ENDINGS = (
    ".mp4",
    ".webm",
    ".avi",
    ".mkv",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".flv",
    ".wmv",
    ".3gp",
    ".ogv",
    ".ts",
)
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "val"}


def own_folder(inputs: Inputs, val: float, seed: int, name: str) -> Plan:
    """Every video below the given folder or in the given CSV file.

    A tree of ``train/class/video`` and ``val/class/video`` keeps its split. Otherwise a part ``val`` of each
    class is drawn with ``seed``: at least one video and never all. A class of one video is for training.

    Errors: ``DataError``.
    """
    if len(inputs.paths) != 1:
        raise DataError(f"folder takes one folder or CSV file, not {len(inputs.paths)}; run it once for each")
    top = inputs.paths[0]
    rows, notes = _rows_of_csv(top) if top.is_file() else _rows_of_tree(inputs, top)
    if not rows:
        raise DataError(f"{one_line(top)}: holds no video in a folder of its class; endings are mp4, webm, avi, ...")
    names = sorted({row[2] for row in rows})
    if all(re.fullmatch(r"\d{1,6}", text) for text in names) and top.is_file():
        numbers, names = {text: int(text) for text in names}, None
        number, order = max(numbers.values()) + 1, "the numbers of the CSV file"
    else:
        numbers, number = {text: i for i, text in enumerate(names)}, len(names)
        order = "alphabetical by class name (code points)"
    clips, lists = {}, {"train": [], "val": []}
    for (file, path, label, split, where), drawn in zip(rows, _draw(rows, val, seed), strict=True):
        clips[path] = Clip(path, (Place(path),), where, file)
        lists[split or drawn].append((path, numbers[label]))
    for split, videos in lists.items():
        if not videos:
            raise DataError(f"{one_line(top)}: no video for the {split} list; add videos or change --val {val}")
    one = Lists(name, f"{name}.yaml", "train.txt", "val.txt", lists["train"], lists["val"], number, names)
    forms = [top] if top.is_file() else []
    version = "given by its split folders" if rows[0][3] else f"drawn with --val {val} --seed {seed}"
    return Plan(clips, [one], "frames", "img_{:05d}.jpg", f"own; split {version}", order, forms, notes=notes)


Row = tuple[Path, str, str, str | None, str]  # file, path, class, split if the tree says it, where


def _rows_of_tree(inputs: Inputs, top: Path) -> tuple[list[Row], list[str]]:
    files = [file for file in inputs.files if file.suffix.lower() in VIDEO_ENDINGS]
    others = len(inputs.files) - len(files)
    notes = (
        [f"note: {others} other files, such as {_first_other(inputs)}, are no videos by their ending"] if others else []
    )
    parts = [file.relative_to(top).parts for file in files]
    heads = {part[0] for part in parts}
    has_splits = heads <= set(SPLITS) and {SPLITS[head] for head in heads} == {"train", "val"}
    rows, depth = [], 1 + has_splits
    for file, part in zip(files, parts, strict=True):
        where = one_line(file)
        if len(part) <= depth:
            raise DataError(f"{where}: lies in no folder of a class; move it into one")
        split = SPLITS[part[0]] if has_splits else None
        rows.append((file, "/".join(part), part[depth - 1], split, where))
    return _without_endings(rows), notes


def _first_other(inputs: Inputs) -> str:
    return one_line(next(file for file in inputs.files if file.suffix.lower() not in VIDEO_ENDINGS))


def _rows_of_csv(top: Path) -> tuple[list[Row], list[str]]:
    rows = []
    reader = csv.reader(text_of(top))
    for line in reader:
        where = f"{one_line(top)}:{reader.line_num}"
        if not line or (reader.line_num == 1 and [cell.strip().lower() for cell in line] == ["path", "label"]):
            continue
        if len(line) != 2 or not all(cell.strip() for cell in line):
            raise DataError(
                f"{where}: {shown(','.join(line))} is not 'path,label'; put quotes around a comma in a name"
            )
        text, label = (cell.strip() for cell in line)
        file = top.parent / text
        path = text if not Path(text).is_absolute() else f"{Path(text).parent.name}/{Path(text).name}"
        path = "/".join(part for part in path.split("/") if part not in ("", ".", ".."))
        rows.append((file, path, label, None, where))
    return _without_endings(rows), []


def _without_endings(rows: list[Row]) -> list[Row]:
    """Frame folders have the file's name without its ending, unless two files differ in their endings alone."""
    short = [re.sub(r"\.\w+$", "", row[1]) for row in rows]
    counts = Counter(short)
    result, seen = [], {}
    for (file, path, label, split, where), stem in zip(rows, short, strict=True):
        path = clip_path(path if counts[stem] > 1 else stem, where)
        if path in seen:
            raise DataError(f"{where}: {shown(path)} stands in {seen[path]} too; list each video once")
        seen[path] = where
        result.append((file, path, label, split, where))
    return result


def _draw(rows: list[Row], val: float, seed: int) -> list[str]:
    """The split of each row; each class is drawn by itself."""
    splits = ["train"] * len(rows)
    for label in sorted({row[2] for row in rows}):
        members = [i for i, row in enumerate(rows) if row[2] == label]
        members.sort(key=lambda i: rows[i][1])
        random.Random(f"{seed} {label}").shuffle(members)
        count = min(max(1, round(len(members) * val)), len(members) - 1)
        for i in members[:count]:
            splits[i] = "val"
    return splits
