"""Reads a list file to its end although some of its lines are wrong."""

from dataclasses import dataclass, field
from math import inf

from .messages import one_line
from .video_list import DataError, Video, list_lines, parse_line


@dataclass
class Listed:
    """A list file with everything that is wrong with its lines.

    ``videos`` are the videos of all lines that can be read, also if their label is too large. ``lines`` is the number
    of lines that are not blank. ``unreadable`` holds a message for each line that is not ``path #frames label``.
    ``labels`` holds a message for each label that is not below ``num_classes``, by the video's place in ``videos``.
    ``problem`` says why the file cannot be used at all.
    """

    file: str
    videos: list[Video] = field(default_factory=list)
    lines: int = 0
    unreadable: list[str] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    problem: str | None = None


def read_every_line(list_file: str, num_classes: int) -> Listed:
    """A list file and its wrong lines, with the messages of ``read_list``."""
    listed = Listed(list_file)
    try:
        lines = list_lines(list_file)
    except DataError as error:
        listed.problem = str(error)
        return listed
    name, listed.lines = one_line(list_file), len(lines)
    for number, line in lines:
        where = f"{name}:{number}"
        try:
            video = parse_line(line, where, num_classes)
        except DataError as error:
            try:
                video = parse_line(line, where, inf)
            except DataError:
                listed.unreadable.append(str(error))
                continue
            listed.labels[len(listed.videos)] = str(error)
        listed.videos.append(video)
    return listed
