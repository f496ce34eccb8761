"""Frames and optical flow from folders of image files, one folder a video."""

import os
import re
import string
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .frame_source import FrameSource
from .image_file import open_image
from .messages import reason, shown
from .video_list import DataError, Video

# A field of a template: its place or nothing, and a width of at most 20. Anything else that Python can format, such as
# {0.__class__} or {:0999999999d}, is no frame number.
_FIELD = re.compile(r"[0-2]?:0?(1?[0-9]|20)?[ds]?")
# Values for the fields of a template, by their count: each choice must give another file name.
_TRIALS = {
    1: [(1,), (2,)],
    2: [("x", 1), ("y", 1), ("x", 2)],
    3: [(1, "x", 1), (2, "x", 1), (1, "y", 1), (1, "x", 2)],
}


class FrameFolder(FrameSource):
    """Image files ``root/<path of the list line>/<image_tmpl with the frame's number>``.

    The template also tells how flow is stored. One field: packed, as the red and the green of one file. Two: an x and a
    y file. Three: the same with the folder's number in front (Something-Something V1); the list may write the folder
    in another way than the files' names, ``42`` for ``000042``. For flow a list gives the number of flow frames, not of
    files: TSM's lists of the third form count x and y files, and its code halves the count, so write half of it here.

    Errors: ``DataError`` for a template without a frame number.
    """

    def __init__(self, root: str | Path, image_tmpl: str):
        self.root, self.image_tmpl, self.fields = Path(root), image_tmpl, template_fields(image_tmpl)
        self.flow_form = "red x and green y of a file" if self.fields == 1 else "an x and a y file each"

    def __str__(self) -> str:
        return self.image_tmpl

    def check(self, modality: str) -> None:
        """Errors: ``DataError`` if the template names flow files and this modality reads frames."""
        if self.fields > 1 and modality != "Flow":
            raise DataError(
                f"image_tmpl {self.image_tmpl!r} names x and y files of flow, not frames for {modality}; "
                "choose modality Flow, or a template with the number alone, such as '{:05d}.jpg'"
            )

    def decode(self, video: Video, numbers: list[int]) -> Iterator[tuple[str, Image.Image]]:
        """RGB frames.

        Errors: ``DataError`` for a missing folder or frame, and for what ``open_image`` refuses.
        """
        for number in numbers:
            yield self._open(video, self.root / video.path, self.image_tmpl.format(number), "RGB")

    def decode_flow(self, video: Video, numbers: list[int]) -> Iterator[tuple[str, Image.Image]]:
        """x and y of each number.

        Errors: those of ``decode``, and ``DataError`` for a grey file where x and y should be packed.
        """
        folder = self.root / video.path  # an absolute path replaces root
        before: tuple[int, ...] = ()
        if self.fields == 3:
            folder, number = self._numbered(folder)
            before = (number,)
        for number in numbers:
            if self.fields == 1:
                name, packed = self._open(video, folder, self.image_tmpl.format(number), "RGB", flow=True)
                for plane in packed.split()[:2]:
                    yield name, plane
            else:
                for axis in "xy":
                    yield self._open(video, folder, self.image_tmpl.format(*before, axis, number), "L", flow=True)

    def _open(self, video: Video, folder: Path, name: str, mode: str, flow: bool = False) -> tuple[str, Image.Image]:
        """The file with its folder, for messages, and its image."""
        file = folder / name
        try:
            return str(file), open_image(file, mode, self.image_tmpl if flow else None)
        except DataError:
            if os.path.exists(file):  # Path.exists() raises if a name is too long
                raise
            raise DataError(self._what_is_missing(video, folder, name)) from None

    def _numbered(self, folder: Path) -> tuple[Path, int]:
        """The folder of a video whose files begin with its number, and this number."""
        if not folder.name.isdecimal():
            raise DataError(
                f"folder {folder.name!r} is not a number, which image_tmpl {self.image_tmpl!r} begins with; "
                "use a template without it"
            )
        number = int(folder.name)
        return folder if os.path.isdir(folder) else folder.with_name(format(number, _specs(self.image_tmpl)[0])), number

    def _what_is_missing(self, video: Video, folder: Path, name: str) -> str:
        if not os.path.isdir(folder):
            return f"no folder {folder}; check the dataset's root and the list's paths"
        try:
            files = sorted(os.listdir(folder))
        except OSError as error:
            return f"no frame {name}: folder {folder} cannot be read ({reason(error)})"
        if not files:
            return f"no frame {name}: folder {folder} is empty; extract the video again"
        unit = "frames" if self.fields == 1 else "flow frames of an x and a y file each"
        return (
            f"no frame {name} in {folder}, which holds {len(files)} files from {files[0]} to {files[-1]}; "
            f"the list says {video.num_frames} {unit} and image_tmpl is {self.image_tmpl!r}"
        )


def template_fields(image_tmpl: str) -> int:
    """How many fields the names of a video's files have.

    1: the number, ``{:05d}.jpg``; 2: x or y and the number, ``flow_{}_{:05d}.jpg``; 3: the folder's number before
    these, ``{:06d}-{}_{:05d}.jpg``.

    Errors: ``DataError`` for any other template.
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


def _specs(image_tmpl: str) -> list[str]:
    """The format of each field.

    Errors: ``ValueError`` for a field that is not a plain number or word.
    """
    specs = []
    for _, name, spec, conversion in string.Formatter().parse(image_tmpl):
        if name is not None:
            if conversion or not _FIELD.fullmatch(f"{name}:{spec}"):
                raise ValueError(f"field {name}:{spec}")
            specs.append(spec)
    return specs
