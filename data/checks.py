"""Checks of list files: they find what a user should know, and what may make a measured accuracy worthless."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .messages import one_line, shown
from .video_list import Video

MOST_CLASSES_NAMED = 5


class Finding(NamedTuple):
    """One kind of oddity in a list. ``text`` is one line that says what it is and how often it occurs.

    ``kind`` is ``"repeated"``, ``"two_labels"`` or ``"empty_classes"`` for one list, and ``"overlap"`` for two lists.
    """

    kind: str
    text: str


def list_findings(
    videos: Sequence[Video], list_file: str, num_classes: int, categories: list[str] | None, root: str
) -> list[Finding]:
    """Findings about one list: videos listed twice, videos under two labels, and classes without a video."""
    file, findings = one_line(list_file), []
    first: dict[str, Video] = {}
    repeated, relabelled = [], []
    for name, video in _named(videos, root):
        earlier = first.setdefault(name, video)
        if earlier is not video:
            (repeated if earlier.label == video.label else relabelled).append((earlier, video))
    if repeated:
        earlier, video = repeated[0]
        text = (
            f"{file}: {_count(repeated, 'line repeats', 'lines repeat')} a video under the same label; "
            f"the first: {shown(video.path)} in lines {_line(earlier)} and {_line(video)}"
        )
        findings.append(Finding("repeated", text))
    if relabelled:
        earlier, video = relabelled[0]
        text = (
            f"{file}: {_count(relabelled, 'line gives', 'lines give')} a video another label than an earlier line; "
            f"the first: {shown(video.path)} has label {earlier.label} in line {_line(earlier)} "
            f"and label {video.label} in line {_line(video)}"
        )
        findings.append(Finding("two_labels", text))
    empty = sorted(set(range(num_classes)) - {video.label for video in videos})
    if empty:
        named = [f"{i} ({one_line(categories[i], 60)})" if categories else str(i) for i in empty[:MOST_CLASSES_NAMED]]
        more = ", ..." if len(empty) > MOST_CLASSES_NAMED else ""
        verb = "has" if len(empty) == 1 else "have"
        text = f"{file}: {len(empty)} of {num_classes} classes {verb} no video: {', '.join(named)}{more}"
        findings.append(Finding("empty_classes", text))
    return findings


def overlap_findings(train: Sequence[Video], val: Sequence[Video], root: str) -> list[Finding]:
    """One finding if the training list holds videos of the validation list; otherwise no finding."""
    trained = dict(_named(train, root))
    both = [(trained[name], video) for name, video in _named(val, root) if name in trained]
    if not both:
        return []
    trained_on, video = both[0]
    text = (
        f"{_count(both, 'validation video is a training video', 'validation videos are training videos')} too; "
        f"the first: {shown(video.path)} in {trained_on.where} and {video.where}"
    )
    return [Finding("overlap", text)]


def _named(videos: Sequence[Video], root: str) -> Iterator[tuple[str, Video]]:
    """The full path of each video, with the video. Videos are the same if their paths are. No file is opened."""
    return ((os.path.normpath(os.path.join(root, video.path)), video) for video in videos)


def _line(video: Video) -> str:
    return video.where.rpartition(":")[2]


def _count(items: list, one: str, more: str) -> str:
    return f"1 {one}" if len(items) == 1 else f"{len(items)} {more}"
