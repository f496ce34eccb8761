"""What is odd about lists: a line for the log for each kind of finding, or an error that names the flag to allow it."""

import os
from collections.abc import Iterator

from .messages import one_line, shown
from .video_list import DataError, Video

MOST_CLASSES_NAMED = 5


def list_findings(
    videos: list[Video],
    list_file: str,
    num_classes: int,
    categories: list[str] | None,
    root: str,
    allow_two_labels: bool = False,
) -> list[str]:
    """Lines about one list: videos that stand twice, videos under two labels, and classes without a video.

    Errors: ``DataError`` for a video under two labels, unless ``allow_two_labels``.
    """
    file, findings = one_line(list_file), []
    first: dict[str, Video] = {}
    repeated, relabelled = [], []
    for name, video in _named(videos, root):
        earlier = first.setdefault(name, video)
        if earlier is not video:
            (repeated if earlier.label == video.label else relabelled).append((earlier, video))
    if repeated:
        earlier, video = repeated[0]
        findings.append(
            f"{file}: {_count(repeated, 'line repeats', 'lines repeat')} a video under the same label; "
            f"the first: {shown(video.path)} in lines {_line(earlier)} and {_line(video)}"
        )
    if relabelled:
        earlier, video = relabelled[0]
        finding = (
            f"{file}: {_count(relabelled, 'line gives', 'lines give')} a video another label than an earlier line; "
            f"the first: {shown(video.path)} has label {earlier.label} in line {_line(earlier)} "
            f"and label {video.label} in line {_line(video)}"
        )
        if not allow_two_labels:
            raise DataError(f"{finding}; correct the list, or allow it with --allow_two_labels")
        findings.append(finding)
    empty = sorted(set(range(num_classes)) - {video.label for video in videos})
    if empty:
        named = [f"{i} ({one_line(categories[i], 60)})" if categories else str(i) for i in empty[:MOST_CLASSES_NAMED]]
        more = ", ..." if len(empty) > MOST_CLASSES_NAMED else ""
        verb = "has" if len(empty) == 1 else "have"
        findings.append(f"{file}: {len(empty)} of {num_classes} classes {verb} no video: {', '.join(named)}{more}")
    return findings


def overlap_findings(train: list[Video], val: list[Video], root: str, allow_overlap: bool = False) -> list[str]:
    """A line if videos of the validation list are in the training list too.

    Errors: ``DataError`` for such videos, unless ``allow_overlap``.
    """
    trained = dict(_named(train, root))
    both = [(trained[name], video) for name, video in _named(val, root) if name in trained]
    if not both:
        return []
    trained_on, video = both[0]
    finding = (
        f"{_count(both, 'validation video is a training video', 'validation videos are training videos')} too; "
        f"the first: {shown(video.path)} in {trained_on.where} and {video.where}"
    )
    if not allow_overlap:
        raise DataError(f"{finding}; correct the lists, or allow it with --allow_overlap")
    return [finding]


def _named(videos: list[Video], root: str) -> Iterator[tuple[str, Video]]:
    """Each video with its path in full, by which it is known; no file is looked at."""
    return ((os.path.normpath(os.path.join(root, video.path)), video) for video in videos)


def _line(video: Video) -> str:
    return video.where.rpartition(":")[2]


def _count(items: list, one: str, more: str) -> str:
    return f"1 {one}" if len(items) == 1 else f"{len(items)} {more}"
