"""Frames and optical flow from a folder of JPEG files."""

import string
from pathlib import Path

from PIL import Image

from .video_list import DataError, Video

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
            f"image_tmpl {image_tmpl!r} must hold one frame number, such as '{{:05d}}.jpg', "
            "for flow after x or y, such as 'flow_{}_{:05d}.jpg'"
        )
    return fields


def read_frames(video: Video, numbers: list[int], root: str, image_tmpl: str) -> list[Image.Image]:
    """The RGB frames with these numbers (from 1), in their order; a number that repeats is decoded once.

    Errors: ``DataError`` for a missing folder, a missing frame and a file that is not a whole image.
    """
    folder = Path(root) / video.path  # an absolute path replaces root
    decoded = {number: _read(folder, image_tmpl.format(number), video, image_tmpl) for number in sorted(set(numbers))}
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
    if fields == 3:
        folder, number = _numbered(folder, video, image_tmpl)
        before = (number,)

    def read(number: int) -> tuple[Image.Image, Image.Image]:
        if fields == 1:
            x, y, _ = _read(folder, image_tmpl.format(number), video, image_tmpl, packed=True).split()
            return x, y
        names = [image_tmpl.format(*before, axis, number) for axis in "xy"]
        x, y = (_read(folder, name, video, image_tmpl, mode="L") for name in names)
        return x, y

    decoded = {number: read(number) for number in sorted(set(numbers))}
    return [image for number in numbers for image in decoded[number]]


def _specs(image_tmpl: str) -> list[str]:
    """The format of each field."""
    return [spec or "" for _, name, spec, _ in string.Formatter().parse(image_tmpl) if name is not None]


def _numbered(folder: Path, video: Video, image_tmpl: str) -> tuple[Path, int]:
    """The folder of a video whose files begin with its number, and this number."""
    if not folder.name.isdecimal():
        raise DataError(
            f"{video.where}: folder {folder.name!r} is not a number, which image_tmpl {image_tmpl!r} begins with; "
            "use a template without it"
        )
    number = int(folder.name)
    return folder if folder.is_dir() else folder.with_name(format(number, _specs(image_tmpl)[0])), number


def _read(
    folder: Path, name: str, video: Video, image_tmpl: str, mode: str = "RGB", packed: bool = False
) -> Image.Image:
    try:
        with Image.open(folder / name) as file:
            image = file.convert(mode)
    except FileNotFoundError:
        raise DataError(f"{video.where}: {_what_is_missing(folder, name, video, image_tmpl)}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{video.where}: {folder / name} is not a readable image ({error}); extract it again") from None
    if packed and file.mode == "L":
        raise DataError(
            f"{video.where}: {folder / name} is grey, not flow packed as red and green; "
            f"for x and y files image_tmpl {image_tmpl!r} needs a field before the number"
        )
    return image


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
