"""JPEG files to pixels by simplejpeg, where it gives the same pixels as Pillow.

Both libraries contain libjpeg-turbo. Pillow is slower, because it stores four bytes for a pixel and opens a file in
several steps. ``benchmarks/RESULTS.md`` has the times. The released codes used Pillow. Therefore simplejpeg is used
only if it gives Pillow's pixels for trial images of every usual kind on this machine. torchvision's decoder is
deprecated and slower than simplejpeg.
"""

import functools
import io
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

START = b"\xff\xd8\xff"
_OTHER_SEGMENTS = frozenset({0xC4, 0xC8, 0xCC})  # tables; the other markers from 0xC0 to 0xCF give an image's size
_APP1, _START_OF_SCAN = 0xE1, 0xDA
CHANNELS = {1: "L", 3: "RGB"}


class Decoder(NamedTuple):
    """A function ``decode(content, mode)`` and the reason why it was chosen.

    The function returns uint8 (H, W, 3) or, for mode L, (H, W, 1). ``decode`` is ``None`` if Pillow decodes.
    """

    decode: Callable[[bytes, str], np.ndarray] | None
    reason: str


def decode(content: bytes | memoryview, mode: str) -> np.ndarray | None:
    """The pixels of a JPEG file, uint8 (H, W, 3), or (H, W) for ``mode`` L, as Pillow gives them.

    The result is ``None`` if the file is not a usual JPEG file that has this mode. Pillow must then read it. Pillow
    converts colours to grey, turns images as their EXIF or XMP data say, and finds out what is wrong with a file.
    """
    chosen, header = decoder(), read_header(content)
    if chosen.decode is None or header is None:
        return None
    width, height, channels = header
    # Pillow warns of images with more pixels than this, or refuses them.
    if CHANNELS[channels] != mode or width * height > (Image.MAX_IMAGE_PIXELS or width * height):
        return None
    try:
        pixels = chosen.decode(content, mode)
    except Exception:  # the libraries raise many types
        return None
    return pixels if mode == "RGB" else pixels[..., 0]


def read_header(content: bytes | memoryview) -> tuple[int, int, int] | None:
    """(width, height, channels) of a JPEG file that has 1 or 3 channels of 8 bits and no EXIF or XMP data.

    The result is ``None`` for all other files.
    """
    if bytes(content[:3]) != START:
        return None
    place, end, header = 2, len(content) - 9, None
    while place < end and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == _START_OF_SCAN:
            return header
        if marker == _APP1:  # EXIF or XMP data; both can tell that the image must be turned
            return None
        if 0xC0 <= marker <= 0xCF and marker not in _OTHER_SEGMENTS:
            bits, high, low, wide, narrow, channels = content[place + 4 : place + 10]
            if bits != 8 or channels not in CHANNELS:
                return None
            header = 256 * wide + narrow, 256 * high + low, channels
        place += 2 + 256 * content[place + 2] + content[place + 3]
    return None


@functools.cache
def decoder() -> Decoder:
    """The decoder for this process: simplejpeg if it is installed and gives Pillow's pixels, otherwise Pillow."""
    try:
        import simplejpeg
    except (ImportError, OSError) as error:
        return Decoder(None, f"Pillow decodes JPEG files, because simplejpeg cannot be imported ({error})")
    spaces = {"RGB": "RGB", "L": "GRAY"}

    def decode(content: bytes, mode: str) -> np.ndarray:
        return simplejpeg.decode_jpeg(content, spaces[mode])

    if not gives_pillows_pixels(decode):
        return Decoder(None, "Pillow decodes JPEG files, because simplejpeg gives other pixels on this machine")
    return Decoder(decode, f"simplejpeg {simplejpeg.__version__} decodes JPEG files, to the same pixels as Pillow")


def gives_pillows_pixels(function: Callable[[bytes, str], np.ndarray]) -> bool:
    """Whether a decoder gives Pillow's pixels for all trial images."""
    for content, mode in trial_images():
        with Image.open(io.BytesIO(content)) as image:
            expected = np.asarray(image.convert(mode))
        try:
            pixels = function(content, mode)
        except Exception:  # the libraries raise many types
            return False
        if not np.array_equal(pixels.reshape(expected.shape), expected):
            return False
    return True


def trial_images() -> Iterable[tuple[bytes, str]]:
    """JPEG files and their modes: all chroma subsamplings that Pillow writes, odd sizes, progressive, and grey."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8)
    colour = Image.fromarray(noise).resize((102, 75), Image.Resampling.BICUBIC)
    for subsampling in (0, 1, 2):
        for settings in ({"quality": 95}, {"quality": 50, "progressive": True}):
            yield _encoded(colour, subsampling=subsampling, **settings), "RGB"
    yield _encoded(colour.convert("L"), quality=90), "L"


def _encoded(image: Image.Image, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **settings)
    return file.getvalue()
