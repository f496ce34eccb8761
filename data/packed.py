"""Packed frames: image files in a few large zip files, and an index that tells where each frame is.

``scripts/pack.py`` writes a folder with these files; ``PackedStore`` reads it.

- ``shard-00000.zip`` and so on: zip files without compression. An entry is an image file of the dataset's folder, or
  a frame that was encoded for the packing (JPEG, or uint8 pixels as a PPM or PGM file). The last entry,
  ``videos.json``, lists the videos of the shard, so the index can be made again from the shards alone.
- ``frames.npy``: for each image file its offset, its number of bytes and its CRC-32. ``videos.npy``: for each video,
  sorted by path, its shard and its rows in ``frames.npy``. Both are mapped into memory, so all processes share one
  copy, and a search reads a few rows only.
- ``store.json``: the shards with their sizes and checksums, and the checksum of ``videos.npy``.

Formats that were considered: WebDataset's tar files and TFRecord are made for reading in order. They need an index for
random access too, and tar adds about 800 bytes to each frame. LMDB, HDF5, Zarr, Parquet/Arrow and ffcv's beton each
need a new dependency. HDF5 files must not stay open across a fork, Parquet reads whole pages, and only ffcv reads its
beton files. A .npy array holds pixels of one size, not JPEG files. Zip files without compression were taken because
Python's standard library writes them, each entry lies in one piece and has a CRC-32, and any zip program lists, checks
(``unzip -t``) and extracts the frames. Python needs about 5 s to read a zip directory of a million entries, so there is
an index beside the shards.
"""

import json
import mmap
import os
import struct
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .frame_source import FLOW_FORMS, FrameSource
from .image_file import decode_image
from .messages import one_line, reason, shown
from .video_list import DataError, Video

STORE, VIDEOS, FRAMES, CONTENTS = "store.json", "videos.npy", "frames.npy", "videos.json"
FORMAT = "packed frames 1"
END = 1024  # bytes at each end of a shard whose checksum is verified when the shard is opened
# Bytes between two frames. On many kinds of disk, finding a place takes about as long as reading so many bytes.
SHORT_GAP = 256 * 1024
REMEDY = "copy it again from a good copy, or delete it and run scripts.pack again"
FRAME = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4")])


def video_type(longest_path: int) -> np.dtype:
    """A row of ``videos.npy``. ``crc32`` is that of the video's rows in ``frames.npy``."""
    fields = [("path", f"S{max(1, longest_path)}"), ("shard", "<u4"), ("files", "<u4"), ("first", "<u8")]
    return np.dtype([*fields, ("crc32", "<u4")])


class PackedStore(FrameSource):
    """The frames of a folder that ``scripts.pack`` wrote.

    The folder is opened when the first frame is read, by each process for itself. The checksum of a frame's bytes is
    verified whenever they are read. ``path`` of a list line must be the one that was packed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._index: _Index | None = None

    def __str__(self) -> str:
        return "packed frames"

    def __getstate__(self) -> dict:
        """Memory maps cannot be pickled; the copy opens its own."""
        return self.__dict__ | {"_index": None}

    @property
    def index(self) -> "_Index":
        """Errors: ``DataError`` if the folder is not a packed set, or if its index is damaged."""
        if self._index is None:
            self._index = _Index(self.path)
        return self._index

    @property
    def flow_form(self) -> str:
        """How flow is stored if this is a set of flow.

        Errors: those of ``index``.
        """
        return FLOW_FORMS[self.index.files_per_frame]

    def check(self, modality: str) -> None:
        """Errors: those of ``index``, and ``DataError`` if the set holds flow in two files and the modality is RGB."""
        if self.index.files_per_frame == 2 and modality != "Flow":
            raise DataError(f"{self.path} holds x and y files of flow, not frames for {modality}; choose modality Flow")

    def decode(self, video: Video, numbers: list[int]) -> Iterator[tuple[str, np.ndarray]]:
        """RGB frames.

        Errors: ``DataError`` for a video or frame that is not in the set, and for a damaged file of the set.
        """
        for name, content in self.read(video, numbers):
            yield name, decode_image(name, content)

    def decode_flow(self, video: Video, numbers: list[int]) -> Iterator[tuple[str, np.ndarray]]:
        """x and y of each number.

        Errors: those of ``decode``, and ``DataError`` for a grey file where x and y should be packed.
        """
        two, tmpl = self.index.files_per_frame == 2, self.index.image_tmpl
        for name, content in self.read(video, numbers):
            pixels = decode_image(name, content, "L" if two else "RGB", tmpl)
            for plane in [pixels] if two else (pixels[..., 0], pixels[..., 1]):
                yield name, plane

    def read(self, video: Video, numbers: list[int]) -> Iterator[tuple[str, memoryview]]:
        """The image files of these frames as they are stored, with names for messages. Flow may have two for a number.

        Errors: those of ``decode``.
        """
        index = self.index
        row, rows = index.find(video)
        shard, mapped = index.shard(int(row["shard"]))
        per_frame = index.files_per_frame
        if numbers and not 1 <= min(numbers) <= max(numbers) * per_frame <= len(rows):
            number = next(n for n in numbers if not 1 <= n <= len(rows) // per_frame)
            raise DataError(
                f"no frame {number} of {video.path} in {self.path}, which holds {len(rows) // per_frame} frames of it; "
                f"the list says {video.num_frames}; correct the list, or pack the dataset again"
            )
        places = [per_frame * (n - 1) + k for n in numbers for k in range(per_frame)]
        wanted = [(int(rows["offset"][i]), int(rows["bytes"][i])) for i in places]
        _read_ahead(mapped, wanted)
        view = memoryview(mapped)
        for place, (offset, size) in zip(places, wanted, strict=True):
            name = f"frame {place // per_frame + 1} of {video.path} in {shard}"
            content = view[offset : offset + size]
            if zlib.crc32(content) != rows["crc32"][place]:
                raise DataError(f"{name} is damaged (its checksum is not the index's); {_of(shard)}")
            yield name, content


class _Index:
    """The index of a packed folder, mapped into memory, and the shards that have been used so far.

    Errors: ``DataError`` that names the file which is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder, self.shards = folder, {}
        store = _read_store(folder)
        try:
            self.image_tmpl, self.files_per_frame = store["image_tmpl"], store["files_per_frame"]
            self.entries, counts = store["shards"], store["counts"]
            longest, checksum = store["longest_path"], store["videos_crc32"]
        except KeyError as error:
            raise DataError(f"{folder / STORE} lacks the key {error}; {_of(folder / STORE)}") from None
        self.videos = _mapped(folder / VIDEOS, video_type(longest), counts["videos"])
        self.frames = _mapped(folder / FRAMES, FRAME, counts["files"])
        if zlib.crc32(self.videos) != checksum:
            raise DataError(f"{folder / VIDEOS} is damaged (its checksum is not that of {STORE}); {_of(VIDEOS)}")
        self.paths = self.videos["path"]

    def find(self, video: Video) -> tuple[np.void, np.ndarray]:
        """The video's row, and the rows of its files.

        Errors: ``DataError`` if the set does not hold the video, or if these rows are damaged.
        """
        path = video.path.encode()
        i = bisect_left(self.paths, path)
        if i == len(self.paths) or self.paths[i] != path:
            raise DataError(
                f"no video {shown(video.path)} in {self.folder}, which holds {len(self.paths)} videos; "
                "use the lists beside it, or pack the dataset again"
            )
        row = self.videos[i]
        first = int(row["first"])
        rows = self.frames[first : first + int(row["files"])]
        if zlib.crc32(rows) != row["crc32"]:
            raise DataError(f"{self.folder / FRAMES} is damaged at video {shown(video.path)}; {_of(FRAMES)}")
        return row, rows

    def shard(self, number: int) -> tuple[Path, mmap.mmap]:
        """A shard's file and its bytes.

        Errors: ``DataError`` if it is missing, is cut off, or is damaged at one of its ends.
        """
        if number not in self.shards:
            name, size, checksum = self.entries[number]
            path = self.folder / name
            try:
                with path.open("rb") as file:
                    found = os.fstat(file.fileno()).st_size
                    if found != size:
                        raise DataError(f"{path} has {found} bytes, but the index says {size}; {_of(path)}")
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise DataError(f"{path} cannot be read ({reason(error)}); {_of(path)}") from None
            if ends_crc32(mapped) != checksum:
                raise DataError(f"{path} is damaged (the checksum of its ends is not the index's); {_of(path)}")
            self.shards[number] = path, mapped
        return self.shards[number]


def _of(file: object) -> str:
    return REMEDY if str(file).endswith(".zip") else "copy the folder again, or run scripts.pack again"


def _read_store(folder: Path) -> dict:
    file = folder / STORE
    try:
        store = json.loads(file.read_bytes())
        checksum = store.pop("crc32")
    except FileNotFoundError:
        raise DataError(
            f"no packed frames in {folder} (no {STORE}); check the dataset's root, or run scripts.pack to its end"
        ) from None
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{file} cannot be read ({one_line(reason(error), 100)}); {_of(file)}") from None
    if checksum != zlib.crc32(_canonical(store)):
        raise DataError(f"{file} is damaged (its checksum is wrong); {_of(file)}")
    if store.get("format") != FORMAT:
        raise DataError(f"{file} has format {shown(store.get('format'))}, not {FORMAT!r}; pack the dataset again")
    return store


def _canonical(store: dict) -> bytes:
    return json.dumps(store, sort_keys=True).encode()


def _mapped(file: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """The rows of an index file, mapped into memory."""
    try:
        rows = np.load(file, mmap_mode="r") if count else np.load(file)  # an empty array cannot be mapped
        whole = os.path.getsize(file) == getattr(rows, "offset", 0) + rows.nbytes or not count
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"{file} cannot be read ({one_line(reason(error), 100)}); {_of(file)}") from None
    if (rows.dtype, rows.shape) != (dtype, (count,)) or not whole:
        raise DataError(f"{file} is not the file that {STORE} describes; {_of(file)}")
    return rows.view(np.ndarray)  # a slice of np.memmap is slow to make


def _read_ahead(mapped: mmap.mmap, wanted: list[tuple[int, int]]) -> None:
    """Let the system read these parts (offset, bytes) of a file at once, and also short gaps between them.

    The parts are in ascending order.

    Otherwise the system would read 128 KB around each frame when the frame is first used, one after the other. A disk
    that needs milliseconds to find a place reads a short gap faster than it finds the next place.
    """
    if not hasattr(mmap, "MADV_WILLNEED"):
        return
    parts: list[list[int]] = []
    for offset, size in wanted:
        if parts and offset - parts[-1][1] <= SHORT_GAP:
            parts[-1][1] = offset + size
        else:
            parts.append([offset - offset % mmap.PAGESIZE, offset + size])
    for start, end in parts:
        mapped.madvise(mmap.MADV_WILLNEED, start, end - start)


def ends_crc32(content: mmap.mmap) -> int:
    """The checksum of the first and the last bytes of a shard."""
    return zlib.crc32(content[-END:], zlib.crc32(content[:END]))


class Shard(NamedTuple):
    """What the index needs to know about a shard.

    ``videos``: path and number of image files of each; ``left_out``: path and reason; ``rows``: of dtype ``FRAME``, the
    files in the order of the videos.
    """

    name: str
    size: int
    ends: int
    videos: list[tuple[str, int]]
    left_out: list[tuple[str, str]]
    rows: np.ndarray


def write_shard(file: Path, videos: Iterable[tuple[str, list[tuple[str, bytes]] | str]]) -> None:
    """Write a shard of (path, image files with their names), or (path, reason) of videos that are left out.

    The file gets its name when it is whole, so a kill leaves no half shard under this name.

    Errors: ``DataError`` if the file cannot be written.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    packed, left_out = [], []
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for path, files in videos:
                if isinstance(files, str):
                    left_out.append((path, files))
                    continue
                packed.append((path, len(files)))
                for name, content in files:
                    # ZipInfo's own date, 1980, so that equal frames make equal shards
                    archive.writestr(zipfile.ZipInfo(f"{path.lstrip('/')}/{name}"), content)
            archive.writestr(zipfile.ZipInfo(CONTENTS), json.dumps({"videos": packed, "left_out": left_out}))
        write_whole(file, part)
    except BrokenPipeError:  # the process for which this one works has died
        raise
    except OSError as error:
        raise DataError(f"{file} cannot be written ({reason(error)}); run the same command again to go on") from None


def read_shard(file: Path) -> Shard:
    """The description of a shard, from the zip file's directory.

    Errors: ``DataError`` if the file is not a whole shard; ``OSError``.
    """
    try:
        with zipfile.ZipFile(file) as archive, mmap.mmap(archive.fp.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            contents = json.loads(archive.read(CONTENTS))
            *entries, _ = archive.infolist()
            rows = np.zeros(len(entries), FRAME)
            for i, entry in enumerate(entries):
                header = entry.header_offset  # of 30 bytes, of which the last four are the lengths of two texts
                texts = sum(struct.unpack_from("<2H", mapped, header + 26))
                rows[i] = header + 30 + texts, entry.file_size, entry.CRC
            videos = [(path, files) for path, files in contents["videos"]]
            left_out = [(path, why) for path, why in contents["left_out"]]
            if sum(files for _, files in videos) != len(rows):
                raise ValueError("its list of videos does not fit")
            return Shard(file.name, len(mapped), ends_crc32(mapped), videos, left_out, rows)
    except (
        zipfile.BadZipFile,
        struct.error,
        zlib.error,
        ValueError,
        LookupError,
        TypeError,
        EOFError,
        RuntimeError,
    ) as error:
        raise DataError(f"{file} is not a whole shard ({one_line(reason(error), 100)}); delete it") from None


def write_index(folder: Path, shards: list[Shard], image_tmpl: str, files_per_frame: int) -> None:
    """Write the index of these shards, ``store.json`` last.

    Errors: ``OSError``.
    """
    found = [(path.encode(), i, files) for i, shard in enumerate(shards) for path, files in shard.videos]
    longest = max((len(path) for path, _, _ in found), default=1)
    rows = np.concatenate([shard.rows for shard in shards])
    videos, first = np.zeros(len(found), video_type(longest)), 0
    for place, (path, shard, files) in enumerate(found):
        videos[place] = path, shard, files, first, zlib.crc32(rows[first : first + files])
        first += files
    videos = videos[np.argsort(videos["path"], kind="stable")]
    for name, content in ((VIDEOS, videos), (FRAMES, rows)):
        part = folder / f".{name}.part"
        with part.open("wb") as file:
            np.save(file, content)
        write_whole(folder / name, part)
    store = {"format": FORMAT, "image_tmpl": image_tmpl, "files_per_frame": files_per_frame}
    store |= {"counts": {"videos": len(videos), "files": len(rows)}, "longest_path": longest}
    store |= {"videos_crc32": zlib.crc32(videos), "shards": [[shard.name, shard.size, shard.ends] for shard in shards]}
    part = folder / f".{STORE}.part"
    part.write_text(json.dumps(store | {"crc32": zlib.crc32(_canonical(store))}, indent=1))
    write_whole(folder / STORE, part)


def write_whole(file: Path, part: Path) -> None:
    """Give a finished ``part`` its name ``file``, after its content has reached the disk."""
    with part.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(part, file)
