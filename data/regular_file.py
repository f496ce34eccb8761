"""Opens the files that users name."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading.

    Other kinds are refused, because a pipe could block for ever and a device such as /dev/zero has no end.

    Errors: ``OSError``, also for anything that is not a regular file; ``ValueError`` for a path with a null character.
    """
    # With O_NONBLOCK, opening a pipe does not wait for a writer. The flag changes nothing for a regular file.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "not a regular file but a pipe or a device; name a file")
