"""The rows of ``scripts.check_dataset``: one for each check, from what the lists, the names and the files show."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from data import DataError, DatasetConfig, FrameSource
from data.check_decode import Decoded
from data.check_files import Problem, can_look
from data.check_lists import Listed
from data.checks import list_findings, overlap_findings
from data.labels import MIRROR_WORDS, mirror_pairs
from data.messages import one_line, shown
from data.packed import PackedStore
from data.video_file import VideoFile

OK, NOTE, FINDING = "ok", "note", "finding"
PAIRS_NAMED = 4
FOR_THE_USER = ("two labels", "overlap", "class names", "flip pairs")  # findings that corrected lists keep
Place = tuple[str, int]  # "train" or "val", and the place in this list


class Row(NamedTuple):
    """One check: its result (``ok``, ``note`` or ``finding``), what was found, and all examples with file and line."""

    check: str
    result: str
    text: str
    examples: list[str] = []  # noqa: RUF012  never changed


def found(check: str, examples: list[str], of: str, fine: str, result: str = FINDING) -> Row:
    """A row about the examples: how many of what they are, and the first. If there are none, the check is ``ok``."""
    if not examples:
        return Row(check, OK, fine)
    return Row(check, result, f"{len(examples)} of {of}; the first: {examples[0]}", examples)


def list_rows(config: DatasetConfig, lists: dict[str, Listed]) -> list[Row]:
    """Rows about the lists, for which no file of a video is needed."""
    both, lines = list(lists.values()), sum(listed.lines for listed in lists.values())
    problems = [listed.problem for listed in both if listed.problem]
    wrong = [text for listed in both for text in listed.unreadable]
    labels = [text for listed in both for text in listed.labels.values()]
    counts = ", ".join(f"{len(listed.videos)} in the {name} list" for name, listed in lists.items())
    if problems:
        rows = [Row("list lines", FINDING, "; ".join(problems), problems)]
    else:
        rows = [found("list lines", wrong, f"{lines} lines that cannot be used", f"videos: {counts}")]
    most = config.num_classes - 1
    rows.append(found("label range", labels, f"{lines} lines with a label beyond {most}", f"labels from 0 to {most}"))
    odd: dict[str, list[str]] = {"repeated": [], "two_labels": [], "empty_classes": []}
    for listed in both:
        if listed.videos:
            names = config.categories
            for kind, text in list_findings(listed.videos, listed.file, config.num_classes, names, config.root):
                odd[kind].append(text)
    train, val = (lists[name].videos for name in ("train", "val"))
    overlap = [text for _, text in overlap_findings(train, val, config.root)]
    for check, texts, fine, result in (
        ("repeated lines", odd["repeated"], "each video is listed once", FINDING),
        ("two labels", odd["two_labels"], "each video has one label", FINDING),
        ("overlap", overlap, "no validation video is a training video", FINDING),
        ("empty classes", odd["empty_classes"], "each class has videos in each list", NOTE),
    ):
        rows.append(Row(check, result, "; ".join(texts)) if texts else Row(check, OK, fine))
    return rows


def name_rows(config: DatasetConfig, problem: str | None) -> list[Row]:
    """Rows about the class names and about the pairs that a flip exchanges. ``problem`` says why there are no names."""
    names, check = config.categories, "class names"
    if problem:
        unknown = "the pairs are unknown without class names"
        return [Row(check, FINDING, problem, [problem]), Row("flip pairs", NOTE, unknown)]
    if names is None:
        text = "none; scores and logs then show numbers, and --flip skip or swap flips every class: write categories"
        return [Row(check, NOTE, text), Row("flip pairs", NOTE, "none, because there are no class names")]
    try:
        pairs = mirror_pairs(names)
    except DataError as error:
        return [Row(check, OK, f"{len(names)} names"), Row("flip pairs", FINDING, str(error), [str(error)])]
    alone = [
        i
        for i, name in enumerate(names)
        if i not in pairs and MIRROR_WORDS.keys() & set(re.findall(r"\w+", name.lower()))
    ]
    texts = []
    if pairs:
        both = [f"{i} <-> {j} ({one_line(names[i], 60)})" for i, j in pairs.items() if i < j]
        more = ", ..." if len(both) > PAIRS_NAMED else ""
        exchanged = f"{count_of(len(both), 'pair')} of classes that a flip exchanges"
        texts.append(f"{exchanged}: {', '.join(both[:PAIRS_NAMED])}{more}")
    if alone:
        named = ", ".join(f"{i} ({one_line(names[i], 60)})" for i in alone[:PAIRS_NAMED])
        more = ", ..." if len(alone) > PAIRS_NAMED else ""
        says = "name says" if len(alone) == 1 else "names say"
        texts.append(f"{len(alone)} {says} left, right or clockwise, but no other name is its mirror: {named}{more}")
    order = _order(names) if pairs else None
    flips = Row("flip pairs", NOTE, "; ".join(texts)) if texts else Row("flip pairs", OK, "no name says left or right")
    if order:
        return [Row(check, NOTE, f"{len(names)} names, not in alphabetical order: {order}"), flips]
    return [Row(check, OK, f"{len(names)} names"), flips]


def count_of(number: int, what: str) -> str:
    """``1 pair`` or ``2 pairs``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _order(names: list[str]) -> str | None:
    """What the order of the names means if it is not alphabetical."""
    late = next((i for i in range(1, len(names)) if names[i].lower() < names[i - 1].lower()), None)
    if late is None:
        return None
    return (
        f"{shown(names[late])} ({late}) follows {shown(names[late - 1])}. The pairs below come from the names and are "
        "right in any order, but label numbers that others publish for flips (86/87, ...), and released weights, "
        "need the order of their own list"
    )


def file_rows(config: DatasetConfig, source: FrameSource, problems: dict[Place, Problem], where: Callable) -> list[Row]:
    """Rows about the names and the number of the files. ``where`` gives the text ``file:line`` of a place."""
    if not can_look(source):
        text = f"not counted, because source {config.source!r} can only be read; the rows below decode frames"
        return [Row("files", NOTE, text)]

    def of(*kinds: str) -> list[str]:
        return [f"{where(place)}: {problem.text}" for place, problem in problems.items() if problem.kind in kinds]

    total = where.count
    things = "files" if isinstance(source, VideoFile) else "videos" if isinstance(source, PackedStore) else "folders"
    rows = [found(things, of("missing"), f"{total} videos that cannot be found", f"all {total} are there")]
    if things == "files":
        return rows
    if things == "folders":
        fine = f"{config.image_tmpl!r} fits"
        rows.append(found("image_tmpl", of("template"), f"{total} videos without a file of this name", fine))
        if first := of("first"):
            rows.append(found("first frame", first, f"{total} videos with another first frame than 1", ""))
        else:
            unused = of("zero")
            rows.append(found("first frame", unused, f"{total} videos with a frame 0", "all begin with frame 1", NOTE))
    rows.append(count_row(of("fewer", "gap", "more"), f"{total} videos", "as the lists say"))
    return rows


def count_row(examples: list[str], of: str, fine: str) -> Row:
    return found("frame counts", examples, f"{of} with other frames than the list says", fine)


def template_row(config: DatasetConfig, proposal: str | None, first: str) -> Row:
    """The row if ``image_tmpl`` fits no video. ``first`` is the message about the first video."""
    if proposal is None:
        return Row("image_tmpl", FINDING, f"fits no video, and no template fits most of them; {first}", [first])
    line = f"image_tmpl: {json.dumps(proposal, ensure_ascii=False)}"
    text = f"{config.image_tmpl!r} fits no video; write this into the dataset's file: {line} (the rows below use it)"
    return Row("image_tmpl", FINDING, text, [first])


def decode_rows(
    source: FrameSource, decoded: dict[Place, Decoded], left: int, every_frame: bool, where: Callable
) -> list[Row]:
    """Rows about the decoded frames. ``left`` is the number of videos left out because they have a problem."""

    def of(*kinds: str) -> list[str]:
        pairs = ((place, result.problem) for place, result in decoded.items())
        return [f"{where(place)}: {problem.text}" for place, problem in pairs if problem and problem.kind in kinds]

    frames, total = sum(result.frames for result in decoded.values()), len(decoded)
    sizes = Counter(result.size for result in decoded.values() if result.size)
    common = ", ".join(f"{w}x{h}" for (h, w), _ in sizes.most_common(3)) + (", ..." if len(sizes) > 3 else "")
    skipped = f"; {left} with a problem above were left out" if left else ""
    rows = []
    if isinstance(source, VideoFile):
        files = f"{total} decoded files"
        rows.append(count_row(of("fewer", "more"), files, f"as the lists say, of {files}"))
    several = f"{total} decoded videos with frames of several sizes"
    rows.append(found("frame sizes", of("size"), several, f"{common} px (width x height)"))
    share = "every frame" if every_frame or isinstance(source, VideoFile) else "the first, middle and last frame"
    fine = f"{frames} decoded, {share} of {total} videos{skipped}"
    rows.append(found("frames", of("bad"), f"{total} decoded videos that cannot be read", fine))
    notes = [f"{where(place)}: {note}" for place, result in decoded.items() for note in result.notes]
    if notes:
        rows.append(found("ends", notes, f"{total} decoded files that may be cut off", "", NOTE))
    return rows


def totals(rows: Iterable[Row]) -> Counter:
    return Counter(row.result for row in rows)
