"""How a process on a CPU handles freed memory."""

import ctypes
from contextlib import suppress

# Constants of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next tensors instead of returning it to the system.

    By default every tensor of some MB gets new memory, and the system clears each page of it at the first write. On a
    CPU this takes a tenth or more of a training step (``benchmarks/RESULTS.md``). With this setting, the process stays
    as large as its peak. Without glibc the function does nothing.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 64 << 20)
