"""List files: a line ``path #frames label`` for each video."""

from pathlib import Path
from typing import NamedTuple


class DataError(ValueError):
    """Something wrong with a dataset; the message is one line that names file, line, value and remedy."""


class Video(NamedTuple):
    """One list line. ``path`` as written, ``where`` is ``file:line`` for messages."""

    path: str
    num_frames: int
    label: int
    where: str


def read_list(list_file: str | Path, num_classes: int) -> list[Video]:
    """The videos of a list file, in its order.

    A line is split from the right, so a path may hold spaces; blank lines are skipped. Frames count from 1, labels
    from 0. Errors: ``DataError`` with file and line.
    """
    try:
        text = Path(list_file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{list_file}: no such list file; check the dataset's train_list and val_list") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file}: cannot be read as UTF-8 text ({error})") from None

    videos = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{list_file}:{number}"
        fields = line.strip().rsplit(maxsplit=2)
        if len(fields) != 3:
            raise DataError(f"{where}: {line.strip()!r} is not 'path #frames label'; write all three, split by spaces")
        path, num_frames, label = fields
        try:
            num_frames, label = int(num_frames), int(label)
        except ValueError:
            raise DataError(
                f"{where}: #frames {num_frames!r} and label {label!r} must be whole numbers in 'path #frames label'"
            ) from None
        if num_frames < 1:
            raise DataError(f"{where}: {num_frames} frames; a video needs at least 1; extract it again")
        if label < 0:
            raise DataError(f"{where}: label {label} is negative; labels count from 0")
        if label >= num_classes:
            raise DataError(
                f"{where}: label {label} is not below num_classes {num_classes}; is this list made for another dataset?"
            )
        videos.append(Video(path, num_frames, label, where))
    if not videos:
        raise DataError(f"{list_file}: holds no video; write a line 'path #frames label' for each")
    return videos
