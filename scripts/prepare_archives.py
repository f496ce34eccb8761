"""Archives as they are published: tar (also compressed) and zip files, whole or split into numbered parts.

The parts are read one after the other as one stream, so no joined copy is written. A part can itself be packed into a
zip file of its own, as some sites deliver it. No member's name is ever used as a path: a caller asks for the names
it knows and says where each goes.
"""

import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from data import DataError
from data.messages import one_line, reason

ENDINGS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tbz2", ".txz", ".zip")
NOT_READ = (".rar", ".7z")
# name-00, name.part0, name.tar.gz.part-aa, name.zip.001, name.tar.gzaa
_PART = re.compile(r"(?P<base>.+?)(?:[-_.]?part[-_.]?|[-_.]|(?<=gz)|(?<=tar)|(?<=zip))(?P<n>\d{1,4}|[a-z]{2})")
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError)
_REMEDY = "is a part missing, or the download not complete?"


class Joined(io.RawIOBase):
    """The bytes of several files one after the other."""

    def __init__(self, parts: list[Path]):
        self.parts, self.sizes, self.position, self.open_part = parts, [_size(part) for part in parts], 0, (-1, None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + (0, self.position, sum(self.sizes))[whence]
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer from the part that holds the position; 0 at the end."""
        start = 0
        for index, size in enumerate(self.sizes):
            if self.position < start + size:
                file = self._part(index)
                if file.tell() != self.position - start:
                    file.seek(self.position - start)
                content = file.read(min(len(buffer), start + size - self.position))
                buffer[: len(content)] = content
                self.position += len(content)
                return len(content)
            start += size
        return 0

    def _part(self, index: int) -> IO[bytes]:
        if self.open_part[0] != index:
            self.close_part()
            packed = _packed_part(self.parts[index])
            file = self.parts[index].open("rb")
            if packed:
                container = zipfile.ZipFile(file)
                file = container.open(packed)
            self.open_part = index, file
        return self.open_part[1]

    def close_part(self) -> None:
        if self.open_part[1] is not None:
            self.open_part[1].close()

    def close(self) -> None:
        self.close_part()
        super().close()


class Archive:
    """One archive, of one file or of several parts."""

    def __init__(self, parts: list[Path]):
        self.parts = parts

    def __str__(self) -> str:
        first, last = self.parts[0], self.parts[-1]
        return one_line(first) if first == last else f"{one_line(first)} to {one_line(last.name)}"

    def members(self) -> Iterator[tuple[str, IO[bytes]]]:
        """Name and content of each file in the archive, in its order. A content is read before the next one.

        Errors: ``DataError`` for a damaged archive, and for a name that leaves the archive's folder.
        """
        stream = io.BufferedReader(Joined(self.parts), 1 << 20)
        try:
            if stream.peek(4)[:4] in (b"PK\3\4", b"PK\5\6"):
                yield from self._zip_members(stream)
            else:
                yield from self._tar_members(stream)
        except _BROKEN as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self}: cannot be read ({reason(error)}); {_REMEDY}") from None

    def _zip_members(self, stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
        with zipfile.ZipFile(stream) as content:
            for info in content.infolist():
                self._check(info.filename)
                if not info.is_dir():
                    with content.open(info) as file:
                        yield info.filename, file

    def _tar_members(self, stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
        with tarfile.open(fileobj=stream, mode="r|*") as content:
            for info in content:
                self._check(info.name)
                if info.isreg():
                    yield info.name, content.extractfile(info)

    def _check(self, name: str) -> None:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{self}: its member {one_line(name)!r} leaves the folder; is this the published archive?")

    def copy(self, content: IO[bytes], to: Path) -> None:
        """Write a member's content into a file.

        Errors: ``DataError`` if the archive is damaged there; ``OSError`` if the disk does not take it.
        """
        with open(to, "wb") as file:
            while True:
                try:
                    block = content.read(1 << 20)
                except _BROKEN as error:
                    raise DataError(f"{self}: cannot be read ({reason(error)}); {_REMEDY}") from None
                if not block:
                    return
                file.write(block)


def find_archives(files: list[Path]) -> list[Archive]:
    """The archives among the files; parts that belong together are one archive.

    Errors: ``DataError`` for a part that is missing between others.
    """
    archives, groups = [], {}
    for file in files:
        name = file.name.lower()
        packed = name.endswith(".zip") and _packed_part(file)
        match = _PART.fullmatch(name.removesuffix(".zip") if packed else name)
        if name.endswith(ENDINGS) and not packed:
            archives.append(Archive([file]))
        elif match and not name.endswith((".gz", ".xz", *NOT_READ)):
            groups.setdefault((file.parent, match["base"]), []).append((_number(match["n"]), file))
    for parts in groups.values():
        parts.sort()
        if not _is_archive(parts[0][1]):
            continue
        numbers = [number for number, _ in parts]
        for number, (before, file) in zip(numbers[1:], parts, strict=False):
            if number != before + 1:
                raise DataError(
                    f"{one_line(file)}: the part behind it is missing, but part {number} is there; download it"
                )
        archives.append(Archive([file for _, file in parts]))
    return sorted(archives, key=lambda archive: str(archive.parts[0]))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else (ord(text[0]) - ord("a")) * 26 + ord(text[1]) - ord("a")


def _packed_part(file: Path) -> str | None:
    """The name of the one member of ``x-00.zip`` if it is the part ``x-00``."""
    if file.suffix.lower() != ".zip" or not _PART.fullmatch(file.stem.lower()):
        return None
    try:
        with zipfile.ZipFile(file) as content:
            names = content.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return None
    return names[0] if len(names) == 1 and PurePosixPath(names[0]).name.lower() == file.stem.lower() else None


def _size(file: Path) -> int:
    packed = _packed_part(file)
    if packed:
        with zipfile.ZipFile(file) as content:
            return content.getinfo(packed).file_size
    return file.stat().st_size


def _is_archive(first_part: Path) -> bool:
    """The first part begins as an archive does."""
    with io.BufferedReader(Joined([first_part])) as stream:
        head = stream.read(265)
    known = (b"\x1f\x8b", b"PK\3\4", b"BZh", b"\xfd7zXZ")
    return head.startswith(known) or head[257:262] == b"ustar"
