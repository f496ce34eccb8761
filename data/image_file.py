"""Image files as upright 8-bit images, and the sizes that crops need."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from PIL import ExifTags, Image, ImageMode

from .video_list import DataError

# Training crops are 1, 0.875, 0.75 and 0.66 of the short side. Of 8 px these are four different sizes; of 1 px all but
# the first are empty, and the network would train on black. A JPEG block has 8 x 8 px, too.
MIN_SIDE = 8
# With a short side of 256 px after the resize, such a frame takes 50 MB. Real videos are at most about 4 times as wide.
MAX_ASPECT = 256
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF's orientation -> the operation that brings the stored image upright


def open_image(file: Path, mode: str = "RGB", flow: str | None = None) -> Image.Image:
    """The image of a file in ``mode`` (RGB or L), turned as its EXIF data say, so as a viewer shows it.

    16-bit RGB becomes 8-bit RGB by its upper bytes (Pillow's reading). ``flow``: the image_tmpl if the file holds flow;
    RGB is packed flow then.

    Errors: ``DataError`` that begins with the file's name, if the file is not a whole image, has other than 8 bits a
    channel, has a size that allows no crops, is flow with an orientation, or is grey where flow is packed.
    """
    try:
        with Image.open(file) as image:
            _check_bits(file, image.mode)
            check_size(file, image.size)
            if flow and mode == "RGB" and Image.getmodebase(image.mode) == "L":
                raise DataError(
                    f"{file} is grey, not flow packed as red and green; "
                    f"for x and y files image_tmpl {flow!r} needs a field before the number"
                )
            turned = _turn(image) if image.format == "TIFF" else None  # on loading, Pillow turns a TIFF itself
            upright = image.convert(mode)
            turn = _turn(image)  # after loading, because a PNG may have its EXIF data at the end
            if flow and (turn, turned) != (None, None):
                raise DataError(f"{file} is flow with an EXIF orientation, which x and y do not follow; remove the tag")
            return upright if turn is None else upright.transpose(turn)
    except DataError:
        raise
    except Exception as error:  # for broken files Pillow raises a dozen types, RuntimeError and KeyError among them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file} is not a readable image ({reason}); extract it again") from None


def check_size(name: object, size: tuple[int, int]) -> None:
    """``size``: (width, height) of the frame ``name``.

    Errors: ``DataError`` if no crops can be cut from this size.
    """
    width, height = size
    shape = f"{name} is {width}x{height} px (width x height)"
    if min(size) < MIN_SIDE:
        raise DataError(f"{shape}; a frame needs at least {MIN_SIDE} px a side: store larger frames")
    if max(size) > MAX_ASPECT * min(size):
        raise DataError(f"{shape}; a side may be {MAX_ASPECT} times the other: store other frames")


def check_sizes(sizes: Mapping[str, tuple[int, int]]) -> None:
    """``sizes``: (width, height) of a video's frames by their names.

    Errors: ``DataError`` that names a frame whose size is not that of most frames, because one crop is cut from all.
    """
    if len(set(sizes.values())) <= 1:
        return
    usual = Counter(sizes.values()).most_common(1)[0][0]
    name = next(name for name, size in sizes.items() if size != usual)
    other = next(name for name, size in sizes.items() if size == usual)
    shapes = ", ".join("{} is {}x{} px".format(key, *sizes[key]) for key in (name, other))
    raise DataError(f"{shapes} (width x height); all frames of a video need one size: store it again")


def _check_bits(file: Path, mode: str) -> None:
    """Errors: ``DataError`` for a mode whose values Pillow would cut off at 255, or below 1, on the way to 8 bits."""
    kind = ImageMode.getmode(mode).typestr  # as numpy's: "|u1" 8 bits, "|b1" black and white, "<u2", "<i4", "<f4"
    if kind[1:] not in ("u1", "b1"):
        raise DataError(
            f"{file} has {8 * int(kind[2:])} bits a channel (Pillow's mode {mode}); "
            "frames and flow are 8-bit images: convert it to 8 bits"
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The operation that brings the image upright by its EXIF data. Unreadable data turn nothing, as in a viewer."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow's EXIF reader has no error type of its own
        return None
