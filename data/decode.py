"""Frames and optical flow from a folder of image files."""

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image, ImageMode

from .messages import shown
from .video_list import DataError, Video

# A field of a template: its place or nothing, and a width of at most 20. Whatever else Python formats, such as
# {0.__class__} or {:0999999999d}, is no frame number.
_FIELD = re.compile(r"[0-2]?:0?(1?[0-9]|20)?[ds]?")
# Training crops are 1, 0.875, 0.75 and 0.66 of the short side. Of 8 px these are four sizes from 5 px on; of 1 px all
# but the first are empty, which trains on black. No codec stores fewer pixels either: a block of JPEG is 8 x 8.
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
}  # EXIF's orientation -> what brings the stored image upright

# What stands for the fields of a template: as many, and each must show in the file's name.
_TRIALS = {
    1: [(1,), (2,)],
    2: [("x", 1), ("y", 1), ("x", 2)],
    3: [(1, "x", 1), (2, "x", 1), (1, "y", 1), (1, "x", 2)],
}


def template_fields(image_tmpl: str) -> int:
    """How many fields the names of a video's files have.

    1: the number, ``{:05d}.jpg``; 2: x or y and the number, ``flow_{}_{:05d}.jpg``; 3: the folder's number before
    these, ``{:06d}-{}_{:05d}.jpg``. Errors: ``DataError`` for any other template.
    """
    try:
        fields = len(_specs(image_tmpl))
        names = {image_tmpl.format(*values) for values in _TRIALS[fields]}
    except (ValueError, LookupError, AttributeError, TypeError):
        fields, names = 0, set()
    if not names or len(names) < len(_TRIALS[fields]):
        raise DataError(
            f"image_tmpl {shown(image_tmpl)} must hold one frame number of at most 20 digits, such as '{{:05d}}.jpg', "
            "for flow after x or y, such as 'flow_{}_{:05d}.jpg'"
        )
    return fields


def open_image(file: Path, mode: str = "RGB", flow: str | None = None) -> Image.Image:
    """The image of a file as a viewer shows it, that is turned as its EXIF data say, in ``mode``: RGB or L.

    16-bit RGB becomes 8-bit RGB by its upper bytes (Pillow's reading). ``flow``: the image_tmpl if this is flow; RGB
    is packed flow then. Errors: ``DataError`` that begins with the file's name: no whole image, other than 8 bits a
    channel, a size that gives no crops, turned flow, grey where flow is packed.
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
            turned = _turn(image) if image.format == "TIFF" else None  # loading a TIFF turns it, and forgets that
            upright = image.convert(mode)
            turn = _turn(image)  # after loading, because a PNG may have its EXIF data at the end
            if flow and (turn, turned) != (None, None):
                raise DataError(f"{file} is flow with an EXIF orientation, which x and y do not follow; remove the tag")
            return upright if turn is None else upright.transpose(turn)
    except DataError:
        raise
    except Exception as error:  # broken files make Pillow's readers raise a dozen types, RuntimeError and KeyError too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file} is not a readable image ({reason}); extract it again") from None


def check_size(name: object, size: tuple[int, int]) -> None:
    """``size``: (width, height) of the frame ``name``. Errors: ``DataError`` where crops of it would be no image."""
    width, height = size
    shape = f"{name} is {width}x{height} px (width x height)"
    if min(size) < MIN_SIDE:
        raise DataError(f"{shape}; a frame needs at least {MIN_SIDE} px a side: store larger frames")
    if max(size) > MAX_ASPECT * min(size):
        raise DataError(f"{shape}; a side may be {MAX_ASPECT} times the other: store other frames")


def check_sizes(sizes: Mapping[str, tuple[int, int]]) -> None:
    """``sizes``: (width, height) of a video's frames by their names.

    Errors: ``DataError`` that names a frame whose size is not that of most, because a crop has one place in all.
    """
    if len(set(sizes.values())) <= 1:
        return
    usual = Counter(sizes.values()).most_common(1)[0][0]
    name = next(name for name, size in sizes.items() if size != usual)
    other = next(name for name, size in sizes.items() if size == usual)
    shapes = ", ".join("{} is {}x{} px".format(key, *sizes[key]) for key in (name, other))
    raise DataError(f"{shapes} (width x height); all frames of a video need one size: store it again")


def read_frames(video: Video, numbers: list[int], root: str, image_tmpl: str) -> list[Image.Image]:
    """The RGB frames with these numbers (from 1), in their order; a number that repeats is decoded once.

    Errors: ``DataError`` for a missing folder, a missing frame, frames of several sizes, and what ``open_image``
    refuses.
    """
    folder = Path(root) / video.path  # an absolute path replaces root
    with _errors_of(video):
        names = {number: image_tmpl.format(number) for number in sorted(set(numbers))}
        decoded = {number: _read(folder, name, video, image_tmpl) for number, name in names.items()}
        check_sizes({f"{folder}/{name}": decoded[number].size for number, name in names.items()})
    return [decoded[number] for number in numbers]


def read_flow(video: Video, numbers: list[int], root: str, image_tmpl: str) -> list[Image.Image]:
    """Flow with these numbers (from 1), in their order: two grey images for each, x and then y.

    The template tells where they are. One field: packed, the red and the green of one file. Two: an x and a y file.
    Three: the same with the folder's number in front (Something-Something V1); the folder may be written as in the
    files' names, ``42`` in a list stands for ``000042``. A list gives the number of flow frames, not of files: TSM's
    lists of the third form count x and y, and its code halves them; write half the number here.
    Errors: those of ``read_frames``, and ``DataError`` for a grey file where a packed one should be.
    """
    folder, fields = Path(root) / video.path, template_fields(image_tmpl)
    before: tuple[int, ...] = ()
    sizes = {}

    def read(name: str, mode: str) -> Image.Image:
        image = _read(folder, name, video, image_tmpl, mode, flow=True)
        sizes[f"{folder}/{name}"] = image.size
        return image

    with _errors_of(video):
        if fields == 3:
            folder, number = _numbered(folder, image_tmpl)
            before = (number,)
        decoded = {}
        for number in sorted(set(numbers)):
            if fields == 1:
                decoded[number] = read(image_tmpl.format(number), "RGB").split()[:2]
            else:
                decoded[number] = [read(image_tmpl.format(*before, axis, number), "L") for axis in "xy"]
        check_sizes(sizes)
    return [image for number in numbers for image in decoded[number]]


def _specs(image_tmpl: str) -> list[str]:
    """The format of each field. Errors: ``ValueError`` for a field that is not a plain number or word."""
    specs = []
    for _, name, spec, conversion in string.Formatter().parse(image_tmpl):
        if name is not None:
            if conversion or not _FIELD.fullmatch(f"{name}:{spec}"):
                raise ValueError(f"field {name}:{spec}")
            specs.append(spec)
    return specs


@contextmanager
def _errors_of(video: Video) -> Iterator[None]:
    """Errors name the line of the list."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{video.where}: {error}") from None


def _numbered(folder: Path, image_tmpl: str) -> tuple[Path, int]:
    """The folder of a video whose files begin with its number, and this number."""
    if not folder.name.isdecimal():
        raise DataError(
            f"folder {folder.name!r} is not a number, which image_tmpl {image_tmpl!r} begins with; "
            "use a template without it"
        )
    number = int(folder.name)
    return folder if folder.is_dir() else folder.with_name(format(number, _specs(image_tmpl)[0])), number


def _read(folder: Path, name: str, video: Video, image_tmpl: str, mode: str = "RGB", flow: bool = False) -> Image.Image:
    try:
        return open_image(folder / name, mode, image_tmpl if flow else None)
    except DataError:
        if (folder / name).exists():
            raise
        raise DataError(_what_is_missing(folder, name, video, image_tmpl)) from None


def _check_bits(file: Path, mode: str) -> None:
    """Errors: ``DataError`` for a mode whose values Pillow would cut off at 255, or below 1, on the way to 8 bits."""
    kind = ImageMode.getmode(mode).typestr  # as numpy's: "|u1" 8 bits, "|b1" black and white, "<u2", "<i4", "<f4"
    if kind[1:] not in ("u1", "b1"):
        raise DataError(
            f"{file} has {8 * int(kind[2:])} bits a channel (Pillow's mode {mode}); "
            "frames and flow are 8-bit images: convert it to 8 bits"
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings the image upright, by its EXIF data. Data that cannot be read turn nothing, as in a viewer."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow's EXIF reader has no error type of its own
        return None


def _what_is_missing(folder: Path, name: str, video: Video, image_tmpl: str) -> str:
    if not folder.is_dir():
        return f"no folder {folder}; check the dataset's root and the list's paths"
    files = sorted(path.name for path in folder.iterdir())
    if not files:
        return f"no frame {name}: folder {folder} is empty; extract the video again"
    unit = "frames" if template_fields(image_tmpl) == 1 else "flow frames of an x and a y file each"
    return (
        f"no frame {name} in {folder}, which holds {len(files)} files from {files[0]} to {files[-1]}; "
        f"the list says {video.num_frames} {unit} and image_tmpl is {image_tmpl!r}"
    )
