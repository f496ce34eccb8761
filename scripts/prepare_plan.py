"""What is to be prepared: the videos of a dataset and its lists. Also the readers of annotation files."""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data import DataError
from data.messages import one_line, path_problem, reason, shown


class Place(NamedTuple):
    """A file that may hold a clip: its name without ending, perhaps with its folder (``class/name``).

    ``start`` and ``end`` are seconds; the clip is the frames from start to before end. None stands for the whole file.
    """

    name: str
    start: float | None = None
    end: float | None = None


class Clip(NamedTuple):
    """One video of the lists. ``path`` is its folder below the root; the first of ``places`` that exists is taken.

    ``where`` is ``file:line`` of the annotation. ``file`` is set if the clip's file is known already.
    """

    path: str
    places: tuple[Place, ...]
    where: str
    file: Path | None = None


@dataclass
class Lists:
    """A training and a validation list of (clip path, label), and the YAML file that names both.

    ``published`` holds the counts that the dataset's authors or users state: ``train`` and ``val`` videos.
    """

    name: str  # the dataset's name, by which recipes know it
    yaml: str
    train_list: str
    val_list: str
    train: list[tuple[str, int]]
    val: list[tuple[str, int]]
    num_classes: int
    categories: list[str] | None
    published: dict[str, int] = field(default_factory=dict)


@dataclass
class Plan:
    """Everything that the annotation files say."""

    clips: dict[str, Clip]
    lists: list[Lists]
    root: str
    image_tmpl: str
    label_version: str
    class_order: str
    forms: list[Path]  # the annotation files that were read
    frames_given: bool = False  # the archive holds image files, not videos
    notes: list[str] = field(default_factory=list)

    @property
    def has_segments(self) -> bool:
        """Some clips are parts of longer videos."""
        return any(place.start is not None for clip in self.clips.values() for place in clip.places)


class Inputs:
    """The files below the given paths. ``ignored`` are folders that this program fills itself."""

    def __init__(self, paths: list[str], ignored: list[Path]):
        self.paths, self.files = [Path(path) for path in paths], []
        self.frame_folders: dict[str, list[Path]] = {}
        skip = {path.resolve() for path in ignored}
        for path in self.paths:
            if path.is_file():
                self.files.append(path)
            elif path.is_dir():
                self._walk(path, skip)
            else:
                raise DataError(f"no file or folder {one_line(path)}; name the downloaded files or their folder")

    def _walk(self, folder: Path, skip: set[Path]) -> None:
        for here, folders, names in os.walk(folder, followlinks=True):
            real = Path(here).resolve()
            if real in skip:
                folders.clear()
                continue
            skip.add(real)  # links can make a circle
            folders.sort()
            files = [Path(here, name) for name in sorted(names) if not name.startswith(".")]
            if files and all(file.suffix.lower() in (".jpg", ".jpeg") for file in files):
                self.frame_folders.setdefault(real.name, []).append(Path(here))
            else:
                self.files += files

    def find(self, what: str, *patterns: str, needed: bool = True) -> Path | None:
        """The one annotation file whose name matches the first pattern that any file matches.

        Errors: ``DataError`` if no file matches and it is needed, or if several files match.
        """
        for pattern in patterns:
            found = self.find_all(pattern)
            if len(found) > 1:
                raise DataError(
                    f"{one_line(found[0])} and {one_line(found[1])} can both be {what}; give only one of them"
                )
            if found:
                return found[0]
        if not needed:
            return None
        stem = Path(patterns[0]).stem
        pickles = [file for file in self.files if file.suffix in (".pkl", ".pickle") and file.match(f"{stem}.*")]
        if pickles:
            raise DataError(
                f"{one_line(pickles[0])} is a pickle, and reading it can run code; "
                f"give {patterns[0]}, which is published beside it"
            )
        raise DataError(
            f"no {what} ({' or '.join(patterns)}) in {', '.join(one_line(path) for path in self.paths)}; "
            "unpack the annotation files there, or name their folder"
        )

    def find_all(self, pattern: str) -> list[Path]:
        """The files whose name matches, in any case."""
        return [file for file in self.files if PurePosixPath(file.name.lower()).match(pattern.lower())]


def text_of(file: Path) -> list[str]:
    """The lines of an annotation file in UTF-8, without their ends.

    Errors: ``DataError``.
    """
    try:
        return file.read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{one_line(file)}: cannot be read as UTF-8 text ({reason(error)}); download it again"
        ) from None


def lines_of(file: Path) -> Iterator[tuple[str, str]]:
    """``file:line`` and the text of each line that is not blank."""
    for number, line in enumerate(text_of(file), start=1):
        if line.strip():
            yield f"{one_line(file)}:{number}", line.strip()


def records_of(file: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """``file:line`` and the columns of each row of a CSV file with a header.

    Errors: ``DataError`` for a column that is missing, and for a row that is too short.
    """
    reader = csv.DictReader(text_of(file))
    missing = [name for name in columns if name not in (reader.fieldnames or [])]
    if missing:
        raise DataError(
            f"{one_line(file)}:1: no column {missing[0]!r} among {shown(reader.fieldnames)}; is this the official file?"
        )
    try:
        for row in reader:
            where = f"{one_line(file)}:{reader.line_num}"
            for name in columns:
                if row[name] is None or not row[name].strip():
                    raise DataError(f"{where}: column {name!r} is empty; correct the line or download the file again")
            yield where, row
    except csv.Error as error:
        raise DataError(
            f"{one_line(file)}:{reader.line_num}: not a line of CSV ({reason(error)}); correct it"
        ) from None


def json_of(file: Path, kind: type) -> Any:
    """The list or mapping that a JSON file holds.

    Errors: ``DataError``.
    """
    try:
        content = json.loads("\n".join(text_of(file)))
    except json.JSONDecodeError as error:
        text = one_line(error.msg)
        raise DataError(f"{one_line(file)}:{error.lineno}: not JSON ({text}); download the file again") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{one_line(file)}: not JSON ({reason(error)}); download the file again") from None
    if not isinstance(content, kind):
        raise DataError(f"{one_line(file)}: holds {shown(content)}, not a {kind.__name__}; is this the official file?")
    return content


def entries_of(file: Path, **keys: type) -> Iterator[tuple[str, dict]]:
    """``file: entry number`` and the mapping of each entry of a JSON list.

    Errors: ``DataError`` for an entry without one of the keys, or with a value of another type.
    """
    for number, entry in enumerate(json_of(file, list), start=1):
        where = f"{one_line(file)}: entry {number}"
        for key, kind in keys.items():
            value = entry.get(key) if isinstance(entry, dict) else None
            if type(value) is not kind:
                raise DataError(
                    f"{where}: {key!r} must be {kind.__name__} in {shown(entry)}; correct it or download the file again"
                )
        yield where, entry


def whole(text: object, what: str, where: str, below: int = 10**12) -> int:
    """A whole number from 0 to ``below`` - 1.

    Errors: ``DataError``.
    """
    text = str(text).strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 13 and int(text) < below):
        limit = f" below {below}" if below < 10**12 else ""
        raise DataError(f"{where}: {what} is {shown(text)}, not a whole number{limit}; correct the line")
    return int(text)


def seconds(text: str, what: str, where: str) -> float:
    """Seconds of a time ``HH:MM:SS.ss``.

    Errors: ``DataError``.
    """
    try:
        hours, minutes, rest = (float(part) for part in text.split(":"))
        if min(hours, minutes, rest) >= 0:
            return hours * 3600 + minutes * 60 + rest
    except ValueError:
        pass
    raise DataError(f"{where}: {what} is {shown(text)}, not a time HH:MM:SS.ss; correct the line")


def clip_path(path: str, where: str) -> str:
    """A clip's path, which must stay below the root and survive in a list line.

    Errors: ``DataError``.
    """
    problem = path_problem(path)
    if not problem and (path != path.strip() or path.startswith("/") or "\\" in path):
        problem = "begins or ends with a space, begins with /, or holds a backslash"
    if not problem and any(part in ("", ".", "..") for part in path.split("/")):
        problem = "leaves its folder"
    if problem:
        raise DataError(f"{where}: the name {shown(path)} {problem}; correct it")
    return path


def label_of(name: str, labels: dict[str, int], where: str, file: Path | str) -> int:
    """The label of a class name.

    Errors: ``DataError`` for an unknown name.
    """
    if name not in labels:
        raise DataError(f"{where}: {shown(name)} is no class of {one_line(file)}; do both files belong together?")
    return labels[name]


def numbered(names: list[str]) -> list[str]:
    """Class names of which no two are equal: those that stand several times get their label behind them."""
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]
