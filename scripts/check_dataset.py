"""Check a dataset before it is trained on: ``python -m scripts.check_dataset DATASET [--decode all] [--fix]``.

It reads both lists to their end, counts the files of each video, decodes a sample of the frames, and prints a table
with a row for each check: ``ok``, ``note`` (worth knowing) or ``finding`` (wrong). The exit status is 1 if there is any
finding. --fix writes corrected lists beside the lists.
"""

import argparse
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

from data import DataError, DatasetConfig, FrameFolder, FrameSource, Video, load_dataset_config
from data.check_decode import Decoded, decode, holds_flow_only
from data.check_files import HARMLESS, THREADS, Problem, can_look, look_at_all
from data.check_lists import Listed, read_every_line
from data.description import OVERRIDES
from data.frame_names import detect_template
from data.progress import watched
from data.video_list import sample
from engine import distributed
from engine.config import ConfigError
from engine.flags import parse_arguments
from engine.loading import processes_and_cores
from scripts.check_fix import can_fix, check_free, write_fixed
from scripts.check_rows import (
    FINDING,
    FOR_THE_USER,
    NOTE,
    Place,
    Row,
    count_of,
    decode_rows,
    file_rows,
    list_rows,
    name_rows,
    template_row,
    totals,
)
from scripts.pack import messages

SAMPLE = 200  # videos of each list of which frames are decoded by default
FOLDERS = 20  # folders from which a template is detected


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.check_dataset", allow_abbrev=False)
    parser.description, _, parser.epilog = __doc__.partition("\n\n")
    parser.add_argument("dataset", help="a name in data/ or a path to a dataset's .yaml")
    text = f"none: decode nothing; sample (default): three frames of up to {SAMPLE} videos a list; all: every frame"
    parser.add_argument("--decode", choices=["none", "sample", "all"], default="sample", help=text)
    text = "write corrected lists, such as train_fixed.txt beside train.txt; a file that exists is not overwritten"
    parser.add_argument("--fix", action="store_true", help=text)
    text = "examples of each finding that are printed below the table (default 5)"
    parser.add_argument("--show", type=int, default=5, metavar="N", help=text)
    cores = processes_and_cores()[1]
    parser.add_argument("--workers", type=int, default=cores, metavar="W", help=f"processes (default: cores, {cores})")
    for flag in OVERRIDES:
        parser.add_argument(f"--{flag}", help="instead of the dataset's own")
    args = parse_arguments(parser)
    for flag, least in (("workers", 1), ("show", 0)):
        if getattr(args, flag) < least:
            parser.error(f"--{flag} {getattr(args, flag)} must be at least {least}")
    return args


class Where:
    """``where((list, place))`` is the text ``file:line``. ``count`` is the number of videos in all."""

    def __init__(self, lists: dict[str, Listed]):
        self.lists, self.count = lists, sum(len(listed.videos) for listed in lists.values())

    def __call__(self, place: Place) -> str:
        return self.video(place).where

    def video(self, place: Place) -> Video:
        """The video at a place."""
        return self.lists[place[0]].videos[place[1]]

    def places(self) -> list[Place]:
        """All places, those of the training list first."""
        return [(name, i) for name, listed in self.lists.items() for i in range(len(listed.videos))]


def main(args: argparse.Namespace) -> None:
    config, names_problem = load(args)
    if args.fix:
        check_free([config.train_list, config.val_list])
    source, label = config.open_source(), f"source {config.source}"
    if config.source == "folder":
        label += f", image_tmpl {config.image_tmpl!r}"
    say(f"{config.name}: {config.num_classes} classes, {label}, root {config.root}")
    files = {"train": config.train_list, "val": config.val_list}
    lists = {name: read_every_line(file, config.num_classes) for name, file in files.items()}
    where = Where(lists)
    rows = [*list_rows(config, lists), *name_rows(config, names_problem)]
    problems, used, template = look_at_files(config, source, where, args.workers)
    seen = file_rows(replace(config, image_tmpl=str(used)) if template else config, used, problems, where)
    rows += [template if template and row.check == "image_tmpl" else row for row in seen]
    found = dict(problems)
    if args.decode != "none" and where.count:
        decoded, left = decode_files(used, where, problems, args)
        rows += decode_rows(used, decoded, left, args.decode == "all", where)
        found |= {place: result.problem for place, result in decoded.items() if result.problem}
    say(table(rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    say(details(rows, args.show))
    fixable = any(can_fix(listed, of_list(found, name), config.root) for name, listed in lists.items())
    say(summary(rows, fixable and not args.fix))
    if args.fix:
        write_lists(args, config, lists, found, rows, template)
    if totals(rows)[FINDING]:
        raise SystemExit(1)


def say(text: str) -> None:
    """Print text that is not empty. It is flushed, because the reader of a pipe should get it at once."""
    if text:
        print(text, flush=True)


def load(args: argparse.Namespace) -> tuple[DatasetConfig, str | None]:
    """The dataset, and why its class names cannot be used.

    Errors: those of ``load_dataset_config`` that do not concern the names.
    """
    paths = {key: getattr(args, key) for key in OVERRIDES}
    try:
        return load_dataset_config(args.dataset, **paths), None
    except DataError as error:
        return load_dataset_config(args.dataset, with_names=False, **paths), str(error)


def look_at_files(
    config: DatasetConfig, source: FrameSource, where: Where, workers: int
) -> tuple[dict[Place, Problem], FrameSource, Row | None]:
    """The problems of the files, the source that was used to find them, and a row if the template fits no video.

    If it fits no video, the source that was used has the template that the first folders suggest.
    """
    if not can_look(source) or not where.count:
        return {}, source, None
    problems = count_files(source, where, workers)
    unfitting = [place for place, problem in problems.items() if problem.kind == "template"]
    missing = sum(problem.kind == "missing" for problem in problems.values())
    if not unfitting or len(unfitting) + missing < where.count:
        return problems, source, None
    folders = [source.place(where.video(place))[0] for place in unfitting[:FOLDERS]]
    listings = [(folder.name, [file.name for file in folder.iterdir()]) for folder in folders]
    proposal = detect_template(listings, source.fields)
    row = template_row(config, proposal, f"{where(unfitting[0])}: {problems[unfitting[0]].text}")
    if proposal is None:
        return problems, source, row
    source = FrameFolder(config.root, proposal)
    return count_files(source, where, workers), source, row


def count_files(source: FrameSource, where: Where, workers: int) -> dict[Place, Problem]:
    """The problems of all videos, in the order of the lists."""
    places = where.places()
    videos = [where.video(place) for place in places]
    looked = look_at_all(source, videos, range(len(videos)), max(THREADS, workers))
    results = watched(looked, len(videos), "counting files", say)
    return {places[i]: problem for i, problem in results if problem}


def decode_files(
    source: FrameSource, where: Where, problems: dict[Place, Problem], args: argparse.Namespace
) -> tuple[dict[Place, Decoded], int]:
    """What decoding shows for each place, and the number of chosen videos that are left out because of a problem.

    Errors: ``DataError`` if the source cannot be read at all.
    """
    chosen = []
    for name, listed in where.lists.items():
        count = len(listed.videos)
        chosen += [(name, i) for i in (range(count) if args.decode == "all" else sample(count, SAMPLE))]
    usable = [place for place in chosen if place not in problems or problems[place].kind in HARMLESS]
    if usable:
        holds_flow_only(source)
    parts = [usable[worker :: args.workers] for worker in range(min(args.workers, len(usable)))]
    calls = [(source, [(place, where.video(place)) for place in part], args.decode == "all") for part in parts]
    with closing(messages(decode_some, calls)) as received:
        results = dict(watched(received, len(usable), "decoding", say))
    return {place: results[place] for place in usable}, len(chosen) - len(usable)


def decode_some(send: Callable, source: FrameSource, jobs: list[tuple[Place, Video]], every_frame: bool) -> None:
    """Send each place with what decoding shows."""
    for place, video in jobs:
        send((place, decode(source, video, every_frame)))


def table(rows: list[Row], width: int | None) -> str:
    """The table, in lines of at most ``width`` characters, or with one line a row if ``width`` is None."""
    check, result = max(len(row.check) for row in rows), len(FINDING)
    rest = None if width is None else max(20, width - check - result - 4)
    lines = [f"{'check':{check}}  {'result':{result}}  what was found"]
    lines.append(f"{'-' * check}  {'-' * result}  {'-' * (rest or 14)}")
    for row in rows:
        first, *more = [row.text] if rest is None else wrapped(row.text, rest)
        lines.append(f"{row.check:{check}}  {row.result:{result}}  {first}")
        lines += [" " * (check + result + 4) + line for line in more]
    return "\n".join(lines)


def wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def details(rows: list[Row], show: int) -> str:
    """More examples of the findings, up to ``show`` of each."""
    return "\n".join(line for row in rows if row.result == FINDING for line in _more(row, show))


def _more(row: Row, show: int) -> Iterator[str]:
    if len(row.examples) > 1 and show:
        yield f"\n{row.check}:"
        yield from (f"  {example}" for example in row.examples[:show])
        if len(row.examples) > show:
            yield f"  ... and {len(row.examples) - show} more; --show {len(row.examples)} prints all"


def summary(rows: list[Row], propose_fix: bool) -> str:
    """The last line."""
    counts = totals(rows)
    text = f"\n{len(rows)} checks: {count_of(counts[FINDING], 'finding')}, {count_of(counts[NOTE], 'note')}"
    if not counts[FINDING]:
        return f"{text}; the dataset can be used"
    return f"{text}; --fix writes corrected lists" if propose_fix else text


def of_list(found: dict[Place, Problem], name: str) -> dict[int, Problem]:
    """The problems of one list, by the place in it."""
    return {i: problem for (split, i), problem in found.items() if split == name}


def write_lists(
    args: argparse.Namespace,
    config: DatasetConfig,
    lists: dict[str, Listed],
    found: dict[Place, Problem],
    rows: list[Row],
    template: Row | None,
) -> None:
    """Write the corrected lists, and say what changed, what was left, and which commands use them.

    Errors: ``OSError``.
    """
    flags = {key: getattr(args, key) for key in OVERRIDES}
    written = False
    for name, listed in lists.items():
        file, text = write_fixed(listed, of_list(found, name), config.root)
        say(text)
        if file:
            flags[f"{name}_list"], written = str(file), True
    for row in rows:
        if row.check in FOR_THE_USER and row.result == FINDING:
            what = "the lines" if row.check in ("two labels", "overlap") else "the names"
            say(f"left for you, because only you know which of {what} is right: {row.text}")
    if template:
        say(f"left for you, because it is not in a list: {template.text}")
    if args.decode == "sample":
        say("only a sample of the frames was decoded; --decode all also finds all damaged files")
    if written:
        given = "".join(f" --{key} {shlex.quote(value)}" for key, value in flags.items() if value is not None)
        say(f"train with: python main.py {shlex.quote(args.dataset)} MODEL --run NAME{given}")
        say(f"check them: python -m scripts.check_dataset {shlex.quote(args.dataset)}{given}")


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, OSError))
