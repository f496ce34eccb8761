"""Frames and optical flow from folders of image files, one folder per video."""

import os
import re
import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .frame_source import FLOW_FORMS, FrameSource
from .image_file import read_image
from .messages import reason, shown
from .video_list import DataError, Video

# A field of a template may hold its place and a width of at most 20. Other fields that Python can format, such as
# {0.__class__} or {:0999999999d}, are not frame numbers.
_FIELD = re.compile(r"[0-2]?:0?(1?[0-9]|20)?[ds]?")
# Values for the fields of a template, by the number of fields. Each of them must give a different file name.
_TRIALS = {
    1: [(1,), (2,)],
    2: [("x", 1), ("y", 1), ("x", 2)],
    3: [(1, "x", 1), (2, "x", 1), (1, "y", 1), (1, "x", 2)],
}


class FrameFolder(FrameSource):
    """Image files ``root/<path of the list line>/<image_tmpl with the frame's number>``.

    The number of fields in the template also says how flow is stored. With one field, x and y are packed into the red
    and green channels of one file. With two fields, x and y are separate files. With three fields they are separate
    files whose names begin with the folder's number (Something-Something V1). The list may then write this number in
    another form, such as ``42`` for ``000042``.

    For flow, the list gives the number of flow frames, not of files. TSM's lists of the third form count x and y files,
    and TSM's code halves that count. Write the halved count in the list here.

    Errors: ``DataError`` for a template without a frame number.
    """

    def __init__(self, root: str | Path, image_tmpl: str):
        self.root, self.image_tmpl, self.fields = Path(root), image_tmpl, template_fields(image_tmpl)
        self.flow_form = FLOW_FORMS[1 if self.fields == 1 else 2]

    def __str__(self) -> str:
        return self.image_tmpl

    def check(self, modality: str) -> None:
        """Check that the template fits the modality.

        Errors: ``DataError`` if the template names flow files and the modality reads frames.
        """
        if self.fields > 1 and modality != "Flow":
            raise DataError(
                f"image_tmpl {self.image_tmpl!r} names x and y files of flow, not frames for {modality}; "
                "choose modality Flow, or a template with the number alone, such as '{:05d}.jpg'"
            )

    def decode(self, video: Video, numbers: list[int]) -> Iterator[tuple[str, np.ndarray]]:
        """RGB frames.

        Errors: ``DataError`` if a folder or frame is missing, or if ``read_image`` refuses a file.
        """
        folder = self.root / video.path  # an absolute path replaces root
        for number in numbers:
            yield self._open(video, folder, self.image_tmpl.format(number), "RGB")

    def decode_flow(self, video: Video, numbers: list[int]) -> Iterator[tuple[str, np.ndarray]]:
        """The x image and the y image for each number.

        Errors: the errors of ``decode``, and ``DataError`` for a grey file that should hold x and y.
        """
        folder, before = self.place(video)
        for number in numbers:
            if self.fields == 1:
                name, packed = self._open(video, folder, self.image_tmpl.format(number), "RGB", flow=True)
                for channel in (0, 1):
                    yield name, packed[..., channel]
            else:
                for axis in "xy":
                    yield self._open(video, folder, self.image_tmpl.format(*before, axis, number), "L", flow=True)

    def place(self, video: Video) -> tuple[Path, tuple[int, ...]]:
        """The folder of a video, and the values of the template's fields before x or y: the folder's number, if any.

        Errors: ``DataError`` if the template has the folder's number, but the folder's name is not a number.
        """
        folder = self.root / video.path  # an absolute path replaces root
        if self.fields < 3:
            return folder, ()
        folder, number = self._numbered(folder)
        return folder, (number,)

    def _open(self, video: Video, folder: Path, name: str, mode: str, flow: bool = False) -> tuple[str, np.ndarray]:
        """The path of the file, which messages name, and its pixels."""
        file = f"{folder}/{name}"
        try:
            return file, read_image(file, mode, self.image_tmpl if flow else None)
        except DataError:
            if os.path.exists(file):
                raise
            raise DataError(self._what_is_missing(video, folder, name)) from None

    def _numbered(self, folder: Path) -> tuple[Path, int]:
        """The folder of a video, and its number. The names of the folder's files begin with this number."""
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
    """The number of fields in the names of a video's files.

    One field is the frame number, ``{:05d}.jpg``. Two fields are x or y and the frame number, ``flow_{}_{:05d}.jpg``.
    Three fields are the folder's number, x or y, and the frame number, ``{:06d}-{}_{:05d}.jpg``.

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
