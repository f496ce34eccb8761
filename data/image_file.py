"""Image files as upright 8-bit images, and the sizes that crops need."""

import functools
import io
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageMode, UnidentifiedImageError

from . import jpeg
from .messages import reason, shown
from .regular_file import open_regular
from .video_list import DataError

# Training crops are 1, 0.875, 0.75 and 0.66 of the short side. With 8 px these are four different sizes. With 1 px all
# but the first are empty, and the network would train on black. A JPEG block also has 8 x 8 px.
MIN_SIDE = 8
# A frame with this ratio takes 50 MB if its short side is resized to 256 px. Real videos have ratios up to about 4.
MAX_ASPECT = 256
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF's orientation -> the operation that turns the stored image upright
_RAW = re.compile(rb"P([56])\n(\d{1,5}) (\d{1,5})\n255\n")  # the header that Pillow writes to PGM and PPM files


def read_image(file: str | Path, mode: str = "RGB", flow: str | None = None) -> np.ndarray:
    """``decode_image`` for a file.

    Errors: those of ``decode_image``, and ``DataError`` if the file cannot be read.
    """
    try:
        with open_regular(file) as opened:
            content = opened.read()
    except OSError as error:
        raise DataError(f"{file} is not a readable image ({reason(error)}); extract it again") from None
    return decode_image(str(file), content, mode, flow)


def decode_image(name: str, content: bytes | memoryview, mode: str = "RGB", flow: str | None = None) -> np.ndarray:
    """The pixels of an image file's content: uint8 (H, W, 3), or (H, W) if ``mode`` is L.

    The image is turned as its EXIF data say, as a viewer shows it. 16-bit RGB becomes 8-bit RGB, because Pillow keeps
    the upper byte of each value. ``name`` is the name of the image in messages. ``flow`` is the image_tmpl if the image
    is flow, otherwise None. An RGB image of flow is packed flow.

    Most JPEG files and uncompressed pixels are read without Pillow. This is faster and gives the same pixels.

    Errors: ``DataError``, which begins with ``name``. Reasons are: the content is not a complete image, does not have 8
    bits per channel, or has a size that allows no crops. Flow must not have an EXIF orientation, and packed flow must
    not be grey.
    """
    pixels = jpeg.decode(content, mode)
    if pixels is None:
        pixels = _raw_pixels(content, mode)
    if pixels is None:
        return np.array(_open_with_pillow(name, content, mode, flow))
    check_size(name, pixels.shape[1::-1])
    return pixels


def _raw_pixels(content: bytes | memoryview, mode: str) -> np.ndarray | None:
    """The pixels of a PPM file (mode RGB) or PGM file (mode L) as Pillow writes them; ``None`` for all other files."""
    header = _RAW.match(content)
    if header is None or header[1] != {"RGB": b"6", "L": b"5"}[mode]:
        return None
    width, height = int(header[2]), int(header[3])
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.frombuffer(content, np.uint8)[header.end() :]
    return pixels.reshape(shape).copy() if pixels.size == np.prod(shape) else None


class SizesDiffer(DataError):
    """The frames of a video have different sizes."""


def _open_with_pillow(name: str, content: bytes | memoryview, mode: str, flow: str | None) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            _check_bits(name, image.mode)
            check_size(name, image.size)
            if flow and mode == "RGB" and Image.getmodebase(image.mode) == "L":
                raise DataError(
                    f"{name} is grey, not flow packed as red and green; "
                    f"for x and y files image_tmpl {flow!r} needs a field before the number"
                )
            turned = _turn(image) if image.format == "TIFF" else None  # on loading, Pillow turns a TIFF itself
            upright = image.convert(mode)
            turn = _turn(image)  # after loading, because a PNG may have its EXIF data at the end
            if flow and (turn, turned) != (None, None):
                raise DataError(f"{name} is flow with an EXIF orientation, which x and y do not follow; remove the tag")
            return upright if turn is None else upright.transpose(turn)
    except DataError:
        raise
    except UnidentifiedImageError:
        problem = f"it begins with {shown(bytes(content[:20]))}" if len(content) else "it is empty"
    except Exception as error:  # for broken files Pillow raises a dozen types, RuntimeError and KeyError among them
        problem = " ".join(str(error).split()) or type(error).__name__
    raise DataError(f"{name} is not a readable image ({problem}); extract it again")


@functools.cache
def _formats() -> list[str]:
    """All formats that Pillow reads, except EPS: an EPS file is a program, and Pillow lets Ghostscript run it."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def check_size(name: object, size: tuple[int, int]) -> None:
    """Check the ``size``, (width, height), of the frame ``name``.

    Errors: ``DataError`` if crops cannot be cut from this size.
    """
    width, height = size
    shape = f"{name} is {width}x{height} px (width x height)"
    if min(size) < MIN_SIDE:
        raise DataError(f"{shape}; a frame needs at least {MIN_SIDE} px a side: store larger frames")
    if max(size) > MAX_ASPECT * min(size):
        raise DataError(f"{shape}; a side may be {MAX_ASPECT} times the other: store other frames")


def check_sizes(sizes: Mapping[str, tuple[int, int]]) -> None:
    """Check that all frames of a video have one size. ``sizes`` maps each frame's name to (width, height).

    Errors: ``SizesDiffer`` that names a frame whose size differs from the size of most frames. One crop is cut from all
    frames, so one size is needed.
    """
    if len(set(sizes.values())) <= 1:
        return
    usual = Counter(sizes.values()).most_common(1)[0][0]
    name = next(name for name, size in sizes.items() if size != usual)
    other = next(name for name, size in sizes.items() if size == usual)
    shapes = ", ".join("{} is {}x{} px".format(key, *sizes[key]) for key in (name, other))
    raise SizesDiffer(f"{shapes} (width x height); all frames of a video need one size: store it again")


def _check_bits(name: str, mode: str) -> None:
    """Check that an image has 8 bits per channel or fewer.

    Errors: ``DataError`` for a mode whose values Pillow would clip at 255, or round to 0, when it converts them to 8
    bits.
    """
    kind = ImageMode.getmode(mode).typestr  # as numpy's: "|u1" 8 bits, "|b1" black and white, "<u2", "<i4", "<f4"
    if kind[1:] not in ("u1", "b1"):
        raise DataError(
            f"{name} has {8 * int(kind[2:])} bits a channel (Pillow's mode {mode}); "
            "frames and flow are 8-bit images: convert it to 8 bits"
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The operation that turns the image upright by its EXIF data.

    If these cannot be read, the image is not turned. A viewer does the same.
    """
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow's EXIF reader can raise many types
        return None
