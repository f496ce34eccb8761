"""Counts the files of all videos before training, once for a dataset, so that no wrong list stops a run halfway."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from data import DataError, DatasetConfig, Video
from data.check_files import HARMLESS, can_look, look_at_all, spread
from data.progress import watched

from .log import info

LONGEST = 60.0  # seconds; a slow disk then ends the check, and the next start goes on
STAMPED = 32  # videos of each list whose times of change are part of the cache file's name
VERSION = 1  # raise it if the check finds more than before


class Checked(NamedTuple):
    """The result of a check without errors, as the cache file holds it.

    ``done`` is the number of videos that were checked, in the order of ``spread``. ``odd`` is the number of those that
    have frames that are never read. ``first`` describes the first of these.
    """

    done: int = 0
    odd: int = 0
    first: str = ""


def check_files(
    dataset: DatasetConfig,
    train: Sequence[Video],
    val: Sequence[Video],
    fingerprints: Sequence[str],
    on_bad_video: str,
    remedy: str,
) -> None:
    """Check that the files of all videos exist and are as many as the lists say, and log the result.

    Nothing is decoded. If a check finds no error, its result is saved in the user's cache folder, and a later start
    does not repeat the check. A change of the lists, the root or the template, or a new time of change of the root or
    of some videos, makes the saved result useless. After ``LONGEST`` seconds, the check ends and logs how many videos
    are left. The next start goes on from there.

    ``fingerprints`` are those of the two lists. ``remedy`` is the command that corrects the lists. If bad videos are
    skipped, one line in the log tells of them.

    Errors: ``DataError`` for the first video of the lists whose files are wrong.
    """
    source, count, begin = dataset.open_source(), len(train) + len(val), time.monotonic()
    if not can_look(source):
        return
    file = _cache_file(dataset, train, val, fingerprints)
    before = _read(file)
    if before.done >= count:
        home = Path(os.path.expanduser("~"))  # Path.home() fails if there is none
        shown = f"~/{file.relative_to(home)}" if file.is_relative_to(home) else file  # logs are published
        info(f"data check: all {count} videos were complete at an earlier start ({shown}); they are not counted again")
        _warn(before, remedy)
        return
    order = spread(count)[before.done :]
    went_on = f", after {before.done} at an earlier start" if before.done else ""
    info(
        f"data check: counting the files of {len(order)} videos{went_on}, for at most {LONGEST:.0f} s; "
        "--skip_data_check starts without this"
    )
    videos = [train[i] if i < len(train) else val[i - len(train)] for i in order]
    looked = look_at_all(source, videos, range(len(videos)), longest=LONGEST)
    results = list(watched(looked, len(videos), "data check", info))
    found = sorted((order[k], videos[k].where, problem) for k, problem in results if problem)
    odd = [f"{where}: {problem.text}" for _, where, problem in found if problem.kind in HARMLESS]
    bad = [f"{where}: {problem.text}" for _, where, problem in found if problem.kind not in HARMLESS]
    if bad and on_bad_video == "stop":
        others = f" ({len(bad) - 1} more of {count} videos have such errors)" if len(bad) > 1 else ""
        raise DataError(f"{bad[0]}{others}; for a report and corrected lists: {remedy}")
    done = before.done + len(results)
    checked = Checked(done, before.odd + len(odd), before.first or next(iter(odd), ""))
    if bad:
        info(f"data check: {len(bad)} of {count} videos are wrong and will be left out; the first: {bad[0]}; {remedy}")
    else:
        _write(file, checked)
        amount = f"all {count}" if done == count else f"{done} of {count}"
        info(f"data check: {amount} videos are complete ({time.monotonic() - begin:.1f} s)")
    if done < count:
        info(f"data check: {count - done} videos are left for the next start; to count them now: {remedy}")
    _warn(checked, remedy)


def _warn(checked: Checked, remedy: str) -> None:
    """Log how many videos have frames that are never read."""
    if checked.odd:
        info(f"data check: {checked.odd} videos have frames that are never read; the first: {checked.first}; {remedy}")


def _cache_file(
    dataset: DatasetConfig, train: Sequence[Video], val: Sequence[Video], fingerprints: Sequence[str]
) -> Path | None:
    """The file for the result of this check; ``None`` if the user has no home folder.

    Its name depends on everything that changes the result and can be read quickly.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        return None
    root = os.path.abspath(dataset.root)
    some = [videos[i] for videos in (train, val) for i in range(0, len(videos), -(-len(videos) // STAMPED))]
    times = [_time_of_change(path) for path in (root, *(os.path.join(root, video.path) for video in some))]
    content = json.dumps([VERSION, dataset.source, root, dataset.image_tmpl, list(fingerprints), times])
    return Path(base, "motion_data_checks", f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.json")


def _time_of_change(path: str) -> int | None:
    with suppress(OSError, ValueError):
        return os.stat(path).st_mtime_ns
    return None


def _read(file: Path | None) -> Checked:
    """The result in the cache file. If it cannot be read, the result is that of a check of no video."""
    if file is not None:
        with suppress(OSError, ValueError, TypeError):
            done, odd, first = json.loads(file.read_bytes())
            return Checked(int(done), int(odd), str(first))
    return Checked()


def _write(file: Path | None, checked: Checked) -> None:
    """Save the result. If the cache folder cannot be written, the next start checks again."""
    if file is not None:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f".{file.name}.{os.getpid()}.part")
            part.write_text(json.dumps(checked))
            os.replace(part, file)
