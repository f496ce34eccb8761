"""The kinds of frame source that a dataset's description can choose (``source: folder``)."""

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from .frame_folder import FrameFolder
from .frame_source import FrameSource
from .messages import shown
from .packed import PackedStore
from .video_file import VideoFile
from .video_list import DataError

if TYPE_CHECKING:
    from .description import DatasetConfig

_KINDS: dict[str, Callable[["DatasetConfig"], FrameSource]] = {}


def register_source(name: str, make: Callable[["DatasetConfig"], FrameSource]) -> None:
    """Add a kind of source. A dataset may then say ``source: <name>``, and ``make(config)`` returns its source.

    ``make`` runs whenever a description is read, so it must not open files. It raises ``DataError`` if the description
    does not suit the source.

    Errors: ``ValueError`` if the name is taken.
    """
    if name in _KINDS:
        raise ValueError(f"a source {name!r} is registered already; choose another name")
    _KINDS[name] = make


def open_source(config: "DatasetConfig") -> FrameSource:
    """The source that a dataset's description names.

    Errors: ``DataError`` for an unknown kind, and the errors of ``make``.
    """
    if config.source not in _KINDS:
        near = difflib.get_close_matches(config.source, _KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_KINDS)}"
        raise DataError(f"unknown source {shown(config.source)}; {hint}")
    return _KINDS[config.source](config)


def _frame_folder(config: "DatasetConfig") -> FrameFolder:
    if not config.image_tmpl:
        raise DataError("lacks the key 'image_tmpl', which source 'folder' needs")
    return FrameFolder(config.root, config.image_tmpl)


register_source("folder", _frame_folder)
register_source("video", lambda config: VideoFile(config.root))
register_source("packed", lambda config: PackedStore(config.root))
