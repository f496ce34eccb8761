"""Shows how far a long pass over videos has come."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_EVERY = 10.0  # seconds


def watched(items: Iterable[T], total: int, what: str, say: Callable[[str], None]) -> Iterator[T]:
    """Yield the items and show progress: a bar on a terminal, otherwise a line to ``say`` every ten seconds."""
    begin = last = time.monotonic()
    with tqdm(total=total, desc=what, unit="video", disable=None, leave=False) as bar:
        for done, item in enumerate(items, start=1):
            bar.update()
            now = time.monotonic()
            if bar.disable and now - last >= LINE_EVERY:
                last = now
                left = round((now - begin) * (total - done) / done)
                say(f"{what}: {done} of {total} videos, {left // 60}:{left % 60:02d} left")
            yield item
