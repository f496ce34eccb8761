"""Finds each clip's file, on disk or in an archive, and has worker processes extract it; finished clips are kept."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing import forkserver
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from data import DataError
from data.messages import one_line
from scripts.prepare_archives import Archive, find_archives
from scripts.prepare_frames import Output, copy_frames, count_frames, extract
from scripts.prepare_plan import Inputs, Place, Plan
from scripts.prepare_tree import VIDEO_ENDINGS

Result = tuple[str, int, str]  # a clip's path, its number of frames, why it was skipped
LINE_EVERY = 10  # s, where the output is no terminal


class Preparation:
    """One run over the clips of a plan. ``finished`` and ``skipped`` tell what became of each.

    ``finished``: clip path -> (path in the lists, number of frames). ``skipped``: clip path -> reason.
    """

    def __init__(self, plan: Plan, inputs: Inputs, output: Output, keep_videos: bool, shard: tuple[int, int]):
        self.plan, self.inputs, self.output, self.keep_videos, self.shard = plan, inputs, output, keep_videos, shard
        self.finished: dict[str, tuple[str, int]] = {}
        self.skipped: dict[str, str] = {}
        self.journal = output.unfinished.parent / "journal" / f"{shard[0]}_of_{shard[1]}.jsonl"
        self.archives = find_archives(inputs.files)
        self.numbers = count()  # of the members that are copied out of archives

    def run(self, workers: int) -> None:
        """Prepare the clips of this shard that are not finished.

        Errors: ``DataError`` for a damaged archive; ``WriteError``.
        """
        self._read_journals()
        number, total = self.shard
        todo = [path for path in self.plan.clips if zlib.crc32(path.encode()) % total == number - 1]
        mine = {path for path in todo if not self._is_finished(path)}
        self.output.root.mkdir(parents=True, exist_ok=True)
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(self.journal, "a", encoding="utf-8") as journal,
            Progress(len(todo), len(todo) - len(mine)) as progress,
            _pool(workers) as pool,
        ):
            journal.write("\n")  # after a line that a kill has cut off
            pending: set[Future] = set()
            for function, *words in self._jobs(mine):
                if pool is None:
                    self._note(function(*words), journal, progress)
                    continue
                pending.add(pool.submit(function, *words))
                while len(pending) >= 4 * workers:  # so that few extracted members wait on the disk
                    pending = self._collect(pending, journal, progress)
            while pending:
                pending = self._collect(pending, journal, progress)
            for path in todo:
                if path not in self.finished and path not in self.skipped:
                    names = " or ".join(place.name for place in self.plan.clips[path].places)
                    self._note([(path, 0, f"no file {names} among the given files and archives")], journal, progress)

    def _collect(self, pending: set[Future], journal, progress: "Progress") -> set[Future]:
        done, rest = wait(pending, return_when=FIRST_COMPLETED)
        try:
            for future in done:
                self._note(future.result(), journal, progress)
        except BrokenExecutor:
            raise DataError("a worker process was killed; is there too little memory? Try fewer --workers") from None
        return rest

    def _note(self, results: list[Result], journal, progress: "Progress") -> None:
        for path, frames, reason in results:
            if reason:
                self.skipped[path] = reason
            else:
                self.finished[path] = self._listed(path), frames
                journal.write(json.dumps([path, *self.finished[path]]) + "\n")
            progress.advance(bool(reason))
        journal.flush()

    def _read_journals(self) -> None:
        for file in sorted(self.journal.parent.glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").split("\n"):
                with suppress(ValueError):  # an empty line, or one that a kill has cut off
                    path, listed, frames = json.loads(line)
                    self.finished[path] = listed, frames

    def _is_finished(self, path: str) -> bool:
        """A folder or file that stands in its place is whole, because it gets its name last."""
        if path in self.finished and os.path.exists(self.output.root / self.finished[path][0]):
            return True
        self.finished.pop(path, None)
        folder = self.output.root / path
        if not self.keep_videos and folder.is_dir():
            self.finished[path] = path, self._frames_there(folder)
            return True
        return False

    def _frames_there(self, folder: Path) -> int:
        """The number of frames in a folder that this run did not write.

        Errors: ``DataError`` if its files are not frames 1 to N under the names that the lists need.
        """
        names, tmpl = os.listdir(folder), self.output.image_tmpl
        if not names or {tmpl.format(i + 1) for i in range(len(names))} != set(names):
            first, last = tmpl.format(1), tmpl.format(len(names))
            raise DataError(
                f"{one_line(folder)}: its {len(names)} files are not frames {first} to {last}; "
                "remove or rename them, or choose another --to"
            )
        return len(names)

    def _listed(self, path: str) -> str:
        return self.kept[path] if self.keep_videos else path

    def _jobs(self, mine: set[str]) -> Iterator[tuple]:
        """A function of ``prepare_frames`` and its arguments, for each file that holds clips of ``mine``."""
        self.kept: dict[str, str] = {}
        missing = set(mine)
        for file, clips in self._files_on_disk(mine).items():
            missing -= {path for path, _ in clips}
            if self.keep_videos:
                for path, _ in clips:
                    self.kept[path] = self._below_root(file)
                    yield count_frames, file, path
            else:
                yield extract, file, clips, self.output, False
        if self.plan.frames_given:
            for path in sorted(missing & self.inputs.frame_folders.keys()):
                missing.remove(path)
                first, *more = self.inputs.frame_folders[path]
                if more:
                    raise DataError(f"{one_line(first)} and {one_line(more[0])} have one name; give only one of them")
                yield copy_frames, first, path, self.output, False
        for archive in self.archives:
            if missing:
                yield from (self._frames_in if self.plan.frames_given else self._videos_in)(archive, missing)

    def _files_on_disk(self, mine: set[str]) -> dict[Path, list[tuple[str, Place]]]:
        found, stems = defaultdict(list), defaultdict(list)
        for file in self.inputs.files:
            if file.suffix.lower() in VIDEO_ENDINGS:
                stems[file.stem].append(file)
        for path in (path for path in self.plan.clips if path in mine):
            clip = self.plan.clips[path]
            if clip.file is not None:
                found[clip.file].append((path, Place(path)))
                continue
            for place in clip.places:
                folder, _, stem = place.name.rpartition("/")
                files = stems.get(stem, [])
                files = [file for file in files if file.parent.name == folder] or files if folder else files
                if len(files) > 1:
                    raise DataError(
                        f"{clip.where}: {one_line(files[0])} and {one_line(files[1])} can both be "
                        f"{one_line(place.name)}; give only one of them"
                    )
                if files:
                    found[files[0]].append((path, place))
                    break
        return found

    def _videos_in(self, archive: Archive, missing: set[str]) -> Iterator[tuple]:
        wanted: dict[str, list[tuple[str, Place]]] = defaultdict(list)
        for path in missing:
            for place in self.plan.clips[path].places:
                wanted[place.name.rpartition("/")[2]].append((path, place))
        for name, content in archive.members():
            member = PurePosixPath(name)
            if member.suffix.lower() not in VIDEO_ENDINGS:
                continue
            clips = [(path, place) for path, place in wanted.get(member.stem, []) if path in missing]
            folders = {place.name.rpartition("/")[0] for _, place in clips}
            if len(folders) > 1:  # two classes have a video of this name
                clips = [(path, place) for path, place in clips if place.name.rpartition("/")[0] == member.parent.name]
            if not clips:
                continue
            missing -= {path for path, _ in clips}
            waiting = self.output.unfinished / f"{self.shard[0]}_{next(self.numbers)}{member.suffix.lower()}"
            waiting.parent.mkdir(parents=True, exist_ok=True)
            archive.copy(content, waiting)
            if self.keep_videos:
                path = clips[0][0]
                file = self.output.root / f"{path}{member.suffix.lower()}"
                file.parent.mkdir(parents=True, exist_ok=True)
                waiting.rename(file)
                self.kept[path] = self._below_root(file)
                yield count_frames, file, path
            else:
                yield extract, waiting, clips, self.output, True

    def _frames_in(self, archive: Archive, missing: set[str]) -> Iterator[tuple]:
        """Frames ``id/00001.jpg``; a video is whole when the next one begins."""
        current, folder, seen = None, None, set()
        for name, content in archive.members():
            member = PurePosixPath(name)
            path = member.parent.name
            if member.suffix.lower() not in (".jpg", ".jpeg") or path not in missing and path not in seen:
                continue
            if path != current:
                if current is not None:
                    yield copy_frames, folder, current, self.output, True
                if path in seen:
                    raise DataError(
                        f"{archive}: the frames of {one_line(path)} lie apart; unpack it and give the folder"
                    )
                current, folder = path, self.output.unfinished / "raw" / path
                folder.mkdir(parents=True, exist_ok=True)
                seen.add(path)
                missing.discard(path)
            archive.copy(content, folder / member.name)
        if current is not None:
            yield copy_frames, folder, current, self.output, True

    def _below_root(self, file: Path) -> str:
        """A path for the lists: relative to the root if the file lies below it."""
        file, root = file.absolute(), self.output.root.absolute()
        return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


class Progress:
    """A bar with the time left on a terminal; elsewhere a plain line every ten seconds."""

    def __init__(self, total: int, finished: int):
        self.total, self.before, self.count, self.skipped = total, finished, finished, 0
        self.start = self.last = time.monotonic()
        self.bar = tqdm(total=total, initial=finished, unit="video", disable=None, leave=False)

    def __enter__(self) -> "Progress":
        if self.before:
            print(f"{self.before} of {self.total} videos are finished already", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, skipped: bool) -> None:
        """One more video is done."""
        self.count, self.skipped = self.count + 1, self.skipped + skipped
        self.bar.update()
        now = time.monotonic()
        if self.bar.disable and (now - self.last >= LINE_EVERY or self.count == self.total):
            self.last = now
            rate = (self.count - self.before) / max(now - self.start, 1e-9)
            left = int((self.total - self.count) / rate)
            clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
            text = f"{self.count} of {self.total} videos, {self.skipped} skipped, {rate:.1f} videos/s, {clock} left"
            print(text, file=sys.stdout, flush=True)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Worker processes, or None for work in this process."""
    if workers == 0:
        yield None
        return
    # A fork of this process could wait for ever for a lock that one of its threads (torch's, tqdm's) holds.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["scripts.prepare_frames"])
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server inherits this: Ctrl-C is for this process
        forkserver.ensure_running()
        signal.signal(signal.SIGINT, former)
    pool = ProcessPoolExecutor(workers, context, _end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
