"""Corrected lists of ``scripts.check_dataset --fix``. They are written beside the old lists, which do not change."""

import os
from collections import Counter
from pathlib import Path

from data import DataError
from data.check_files import Problem
from data.check_lists import Listed
from data.messages import one_line


def fixed_file(list_file: str) -> Path:
    """``train_fixed.txt`` for ``train.txt``."""
    file = Path(list_file)
    return file.with_name(f"{file.stem}_fixed{file.suffix}")


def check_free(list_files: list[str]) -> None:
    """Check that the files of the corrected lists do not exist yet.

    Errors: ``DataError`` if one of them exists.
    """
    for file in map(fixed_file, list_files):
        if file.exists():
            raise DataError(f"{one_line(file)} exists and is not overwritten; use it, rename it or delete it")


def fix(listed: Listed, problems: dict[int, Problem], root: str) -> tuple[list[str], Counter]:
    """The lines of the corrected list, and how many lines of the old one it corrects or leaves out, by reason.

    The frame counts are those of the files. Two kinds of lines are left out: those that cannot be used, and those that
    repeat a video under the same label. A video with two labels or in both lists stays, because only the user knows
    which line is right.
    """
    lines, changes, seen = [], Counter({"unreadable": len(listed.unreadable)}), set()
    for i, video in enumerate(listed.videos):
        problem, key = problems.get(i), (os.path.normpath(os.path.join(root, video.path)), video.label)
        if i in listed.labels:
            changes["label out of range"] += 1
        elif problem and problem.frames is None:
            changes["video unusable"] += 1
        elif key in seen:
            changes["repeated"] += 1
        else:
            seen.add(key)
            frames = problem.frames if problem else video.num_frames
            changes["count corrected"] += frames != video.num_frames
            lines.append(f"{video.path} {frames} {video.label}\n")
    return lines, +changes


def can_fix(listed: Listed, problems: dict[int, Problem], root: str) -> bool:
    """Whether ``write_fixed`` would write a list."""
    return not listed.problem and all(fix(listed, problems, root))


def write_fixed(listed: Listed, problems: dict[int, Problem], root: str) -> tuple[Path | None, str]:
    """Write the corrected list if anything changes; returns its file and a line for the user.

    Errors: ``OSError`` if the file cannot be written or exists by now.
    """
    name = one_line(listed.file)
    if listed.problem:
        return None, f"{listed.problem}; nothing was written"
    lines, changes = fix(listed, problems, root)
    if not changes:
        return None, f"{name}: nothing to correct"
    text = ", ".join(f"{what}: {count}" for what, count in changes.items())
    if not lines:
        return None, f"{name}: no line of it can be used ({text}); nothing was written"
    file = fixed_file(listed.file)
    with file.open("x", encoding="utf-8") as new:
        new.writelines(lines)
    return file, f"{one_line(file)}: written; {changes.total()} of {listed.lines} lines of {name} changed ({text})"
