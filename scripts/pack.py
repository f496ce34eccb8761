"""Pack the frames of a dataset's lists into a few large files: ``python -m scripts.pack DATASET [--out FOLDER]``.

FOLDER then holds NAME.yaml, a dataset for main.py and test_models.py, and the folder NAME with the lists, the frames
in zip files without compression, and their index (data/packed.py). Image files are copied byte by byte, so their
frames are those of the dataset to the last bit. Each frame is decoded once for a check, so a packed set holds no frame
that cannot be read. After a kill, the same command goes on with the files that are not finished.
"""

import argparse
import io
import json
import multiprocessing
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

import yaml
from PIL import Image
from tqdm import tqdm

from data import DataError, DatasetConfig, FrameFolder, FrameSource, Video, load_dataset_config, read_list
from data.description import OVERRIDES
from data.image_file import check_sizes
from data.messages import one_line, reason
from data.packed import Shard, read_shard, write_index, write_shard, write_whole
from data.transforms import ResizeTo, resized_size
from data.video_list import fingerprint
from engine import distributed
from engine.config import ConfigError, parse_size
from engine.flags import parse_arguments
from engine.loading import processes_and_cores
from engine.lock import hold_lock

LISTS = ("train", "val")
Lists = dict[str, Sequence[Video]]  # by the names in LISTS
PLAN = "plan.json"
MOST_SHARDS = 256  # each process has the used shards open, and many systems allow 1024 open files
SAMPLES = 32  # videos of which a frame is packed beforehand, to estimate the size of all
JPEG = {"quality": 95, "subsampling": 0}  # of resized frames; 0: no chroma subsampling


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.pack", allow_abbrev=False)
    parser.description, _, parser.epilog = __doc__.partition("\n\n")
    parser.add_argument("dataset", help="a name in data/ or a path to a dataset's .yaml")
    parser.add_argument("--out", default="packed", metavar="FOLDER", help="where to write (default: packed)")
    parser.add_argument("--raw", action="store_true", help="store uint8 pixels (PPM, PGM) instead of the image files")
    text = "store frames of this size, encoded again as JPEG (not bit-equal to the dataset's) or, with --raw, as pixels"
    parser.add_argument("--resize", metavar="S|HxW", help=f"{text}; short side, or height x width")
    choices = {"choices": ["stop", "skip"], "default": "stop"}
    parser.add_argument("--on_bad_video", **choices, help="skip: leave such videos out of the lists and name them")
    cores = processes_and_cores()[1]
    parser.add_argument("--workers", type=int, default=cores, metavar="W", help=f"processes (default: cores, {cores})")
    text = "size of a file (default 1024); a set has at most 256 files; a repetition keeps the first size"
    parser.add_argument("--shard_size", type=float, default=1024, metavar="MB", help=text)
    for flag in OVERRIDES:
        parser.add_argument(f"--{flag}", help="instead of the dataset's own")
    args = parse_arguments(parser)
    if args.workers < 1:
        parser.error(f"--workers {args.workers} must be at least 1")
    if not args.shard_size > 0:
        parser.error(f"--shard_size {args.shard_size:g} must be more than 0")
    return args


class Packer(NamedTuple):
    """How the frames of a source are stored."""

    source: FrameSource
    raw: bool
    size: ResizeTo

    @property
    def files_per_frame(self) -> int:
        return 2 if isinstance(self.source, FrameFolder) and self.source.fields > 1 else 1

    def files(self, video: Video, numbers: list[int]) -> list[tuple[str, bytes]]:
        """Names and contents of the image files to store for these frames, x before y.

        Errors: ``DataError`` if a frame cannot be read, or if the frames have several sizes.
        """
        flow = self.files_per_frame == 2
        files, sizes = [], {}
        for i, (name, image) in enumerate((self.source.decode_flow if flow else self.source.decode)(video, numbers)):
            image = image if isinstance(image, Image.Image) else Image.fromarray(image)
            sizes[name] = image.size
            number = numbers[i // self.files_per_frame]
            files.append(self._file(name, image, f"{'xy'[i % 2]}_{number:06d}" if flow else f"{number:06d}"))
        check_sizes(sizes)
        return files

    def _file(self, name: str, image: Image.Image, stem: str) -> tuple[str, bytes]:
        if not self.raw and self.size is None:
            try:
                return Path(name).name, Path(name).read_bytes()  # FrameFolder names a frame by its file
            except OSError as error:
                raise DataError(f"{name} cannot be read ({reason(error)})") from None
        content = io.BytesIO()
        image = image.resize(resized_size(*image.size, self.size), Image.Resampling.BILINEAR)
        if self.raw:
            image.save(content, "PPM")
            return f"{stem}.{'pgm' if image.mode == 'L' else 'ppm'}", content.getvalue()
        image.save(content, "JPEG", **JPEG)
        return f"{stem}.jpg", content.getvalue()


def main(args: argparse.Namespace) -> None:
    paths = {key: getattr(args, key) for key in OVERRIDES}
    config = load_dataset_config(args.dataset, **paths)
    packer = Packer(config.open_source(), args.raw, parse_size(args.resize))
    check_source(config, packer)
    lists = {key: read_list(getattr(config, f"{key}_list"), config.num_classes) for key in LISTS}
    videos = longest_of_each(lists)
    out, name = Path(args.out), re.sub(r"[^\w.-]+", "_", config.name)
    settings = {"dataset": config.name, "source": config.source, "root": str(Path(config.root).resolve())}
    settings |= {"image_tmpl": config.image_tmpl, "raw": args.raw, "resize": args.resize}
    settings |= {key: fingerprint(lists[key]) for key in LISTS}
    with taken(out / name):
        shards = plan(packer, videos, out / name, settings, args.shard_size * 2**20)
        print(f"packing {len(videos)} videos of {config.name} into {len(shards)} files in {out / name}", flush=True)
        found = pack(packer, shards, out / name, args.workers, args.on_bad_video)
        left_out = report_bad(found, videos, args.on_bad_video)
        finish(config, packer, lists, found, left_out, out / name)


def check_source(config: DatasetConfig, packer: Packer) -> None:
    """Errors: ``DataError`` if the dataset is packed, or if it has no image files and files are to be copied."""
    if config.source == "packed":
        raise DataError(f"{config.name} is packed already ({config.root}); name the dataset that it was made from")
    if not (packer.raw or packer.size or isinstance(packer.source, FrameFolder)):
        raise DataError(
            f"source {config.source!r} of {config.name} has no image files to copy; "
            "add --raw for pixels, or --resize for JPEG files"
        )


def longest_of_each(lists: Lists) -> list[Video]:
    """The videos of the lists, each once. If several lines name a video, the line with the most frames is taken."""
    videos: dict[str, Video] = {}
    for video in (video for key in LISTS for video in lists[key]):
        if video.path not in videos or video.num_frames > videos[video.path].num_frames:
            videos[video.path] = video
    return list(videos.values())


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """A context in which only this process packs into ``folder``. A folder that stays empty is deleted afterwards.

    Errors: ``ConfigError`` if another process packs into the folder, if the folder cannot be written, or if the folder
    or the dataset's YAML was not written by this script.
    """
    lock, text = folder / ".lock", f"another process packs into {folder}; wait for it or choose another --out"
    with hold_lock(lock, folder, "--out", lambda _: text):
        if not (folder / PLAN).exists():
            others = [file for file in folder.glob("*") if file != lock and file.suffix != ".part"]
            for file in [*filter(Path.exists, [dataset_file(folder)]), *others]:
                raise ConfigError(f"{file} exists and was not written by scripts.pack; choose another --out")
        for part in folder.glob(".*.part"):  # of a process that was killed
            part.unlink()
        yield


def plan(packer: Packer, videos: list[Video], folder: Path, settings: dict, shard_size: float) -> list[list[Video]]:
    """The videos of each shard. A repetition gets those of the first time, from the plan in ``folder``.

    Errors: ``ConfigError`` if the plan has other settings, or if the disk has too little space for the missing shards;
    ``DataError`` if no frame can be read.
    """
    file = folder / PLAN
    if file.exists():
        try:
            former = json.loads(file.read_bytes())
            per_frame, per_shard = float(former.pop("bytes_per_frame")), float(former.pop("frames_per_shard"))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ConfigError(f"{file} is damaged; delete {folder} or choose another --out") from None
        for key in settings:
            if former.get(key) != settings[key]:
                raise ConfigError(
                    f"{folder} holds another set ({key}: {one_line(former.get(key))}, now {one_line(settings[key])}); "
                    "delete it or choose another --out"
                )
    else:
        (per_frame,) = messages(estimate, [(packer, videos)])
        per_shard = max(shard_size / per_frame, sum(video.num_frames for video in videos) / MOST_SHARDS)
    shards, frames = [[]], 0
    for video in videos:
        if shards[-1] and frames + video.num_frames > per_shard:
            shards.append([])
            frames = 0
        shards[-1].append(video)
        frames += video.num_frames
    missing = [shard for i, shard in enumerate(shards) if not shard_file(folder, i).exists()]
    needed = 1.05 * per_frame * sum(video.num_frames for shard in missing for video in shard)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ConfigError(
            f"{folder}: about {needed / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB are free; free the space, "
            "choose another --out, or store smaller frames with --resize"
        )
    save(file, json.dumps(settings | {"bytes_per_frame": per_frame, "frames_per_shard": per_shard}, indent=1))
    return shards


def estimate(send: Callable, packer: Packer, videos: list[Video]) -> None:
    """Send the mean number of bytes of a frame, from the middle frames of some videos.

    Errors: the ``DataError`` of the first of them if none can be read.
    """
    sizes, errors = [], []
    for video in videos[:: -(-len(videos) // SAMPLES)]:
        try:
            files = packer.files(video, [(packer.source.length(video) + 1) // 2])
        except DataError as error:
            errors.append(DataError(f"{video.where}: {error}"))
        else:
            sizes.append(sum(len(content) + 2 * len(f"{video.path}/{name}") + 92 for name, content in files))
    if not sizes:
        raise errors[0]
    send(sum(sizes) / len(sizes))


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.zip"


def dataset_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.yaml")


def pack(packer: Packer, shards: list[list[Video]], folder: Path, workers: int, on_bad_video: str) -> list[Shard]:
    """Write the shards that are missing, by several processes.

    A shard that leaves videos out is written again if bad videos stop the packing, since they may be repaired.

    Errors: those of writing, and ``ConfigError`` if a process dies.
    """
    frames, done, begin = sum(video.num_frames for shard in shards for video in shard), 0, time.monotonic()
    found: dict[int, Shard] = {}
    parts = [range(w, len(shards), workers) for w in range(min(workers, len(shards)))]
    tasks = [(packer, shards, folder, part, on_bad_video == "skip") for part in parts]
    with tqdm(total=frames, unit="frame", disable=None) as bar, closing(messages(pack_some, tasks)) as received:
        for message in received:
            if isinstance(message, int):
                done += message
                bar.update(message)
                continue
            found.update([message])
            if bar.disable:  # not a terminal
                left = f"{(time.monotonic() - begin) * (frames / done - 1) / 60:.1f} minutes left"
                print(f"file {len(found)} of {len(shards)}: {done} of {frames} frames, {left}", flush=True)
    return [found[number] for number in range(len(shards))]


def messages(task: Callable, calls: list[tuple]) -> Iterator[object]:
    """The messages of several processes. Each of them runs ``task(send, *call)`` for one of the calls.

    The main process decodes nothing, because a process that is forked after PyAV has started threads may wait forever.

    Errors: the ``DataError`` or ``OSError`` of a process, and ``ConfigError`` if one dies.
    """
    processes, receivers = [], []
    try:
        for call in calls:
            receiver, sender = multiprocessing.Pipe(duplex=False)
            processes.append(multiprocessing.Process(target=run_task, args=(sender, task, call), daemon=True))
            processes[-1].start()
            sender.close()
            receivers.append(receiver)
        while receivers:
            for receiver in connection.wait(receivers):
                try:
                    message = receiver.recv()
                except EOFError:
                    receivers.remove(receiver)
                    continue
                if isinstance(message, Exception):
                    raise message
                yield message
        for process in processes:
            process.join()
            if process.exitcode:
                raise ConfigError("a process died, perhaps for lack of memory; run the same command again to go on")
    finally:
        for process in processes:
            process.kill()
            process.join()


def run_task(sender: connection.Connection, task: Callable, call: tuple) -> None:
    """The work of a process. If the main process has died, the next message cannot be sent and this process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    try:
        task(sender.send, *call)
    except BrokenPipeError:
        return
    except (DataError, OSError) as error:
        sender.send(error)


def pack_some(
    send: Callable, packer: Packer, shards: list[list[Video]], folder: Path, numbers: Sequence[int], keep_gaps: bool
) -> None:
    """Write these shards unless they are there. Sends the number of frames after each video, and each shard."""
    for number in numbers:
        file, videos = shard_file(folder, number), shards[number]
        shard = finished(file, videos, keep_gaps)
        if shard is None:
            write_shard(file, contents(packer, videos, send))
            shard = read_shard(file)
        else:
            send(sum(video.num_frames for video in videos))
        send((number, shard))


def contents(
    packer: Packer, videos: list[Video], send: Callable
) -> Iterator[tuple[str, list[tuple[str, bytes]] | str]]:
    """The path of each video with its image files, or with the reason why it is left out."""
    for video in videos:
        try:
            yield video.path, packer.files(video, list(range(1, packer.source.length(video) + 1)))
        except DataError as error:
            yield video.path, str(error)
        send(video.num_frames)


def finished(file: Path, videos: list[Video], keep_gaps: bool) -> Shard | None:
    """The shard if it is there and holds these videos; ``None`` if it has to be written."""
    try:
        shard = read_shard(file)
    except (FileNotFoundError, DataError):
        return None
    same = {path for path, _ in [*shard.videos, *shard.left_out]} == {video.path for video in videos}
    return shard if same and (keep_gaps or not shard.left_out) else None


def report_bad(shards: list[Shard], videos: list[Video], on_bad_video: str) -> set[str]:
    """Print why videos are left out; returns their paths.

    Errors: ``DataError`` if there are such videos and they are not to be skipped.
    """
    where = {video.path: video.where for video in videos}
    left_out = {path: why for shard in shards for path, why in shard.left_out}
    for path, why in left_out.items():
        print(f"left out: {where[path]}: {why}", flush=True)
    if left_out and on_bad_video == "stop":
        raise DataError(
            f"{len(left_out)} of {len(videos)} videos cannot be packed, the lines above say why; repair them and run "
            "the same command again, or leave them out with --on_bad_video skip"
        )
    return set(left_out)


def finish(
    config: DatasetConfig, packer: Packer, lists: Lists, shards: list[Shard], left_out: set[str], folder: Path
) -> None:
    """Write the lists, the index and, last, the dataset's YAML.

    Errors: ``DataError`` if a list has no video left.
    """
    for key, videos in lists.items():
        kept = [video for video in videos if video.path not in left_out]
        if not kept:
            raise DataError(f"{getattr(config, f'{key}_list')}: no video of it can be read; the lines above say why")
        lines = [f"{video.path} {packer.source.length(video)} {video.label}\n" for video in kept]
        save(folder / f"{key}.txt", "".join(lines))
    write_index(folder, shards, config.image_tmpl, packer.files_per_frame)
    values = {"name": config.name, "num_classes": config.num_classes, "source": "packed", "root": folder.name}
    values |= {f"{key}_list": f"{folder.name}/{key}.txt" for key in LISTS}
    values |= {"categories": config.categories} if config.categories else {}
    save(dataset_file(folder), yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    size = sum(shard.size for shard in shards)
    frames = sum(len(shard.rows) for shard in shards) // packer.files_per_frame
    without = f", WITHOUT {len(left_out)} bad videos, listed above" if left_out else ""
    print(f"{dataset_file(folder)}: {frames} frames, {size / 1e6:.1f} MB in {len(shards)} files{without}", flush=True)


def save(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    write_whole(file, part)


if __name__ == "__main__":
    arguments = parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, OSError))
