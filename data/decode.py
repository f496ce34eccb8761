"""Frames from a folder of JPEG files."""

from pathlib import Path

from PIL import Image

from .video_list import DataError, Video


def read_frames(video: Video, numbers: list[int], root: str, image_tmpl: str) -> list[Image.Image]:
    """The RGB frames with these numbers (from 1), in their order; a number that repeats is decoded once.

    Errors: ``DataError`` for a missing folder, a missing frame and a file that is not a whole image.
    """
    folder = Path(root) / video.path  # an absolute path replaces root
    decoded = {number: _read(folder, image_tmpl.format(number), video, image_tmpl) for number in sorted(set(numbers))}
    return [decoded[number] for number in numbers]


def _read(folder: Path, name: str, video: Video, image_tmpl: str) -> Image.Image:
    try:
        with Image.open(folder / name) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{video.where}: {_what_is_missing(folder, name, video, image_tmpl)}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{video.where}: {folder / name} is not a readable image ({error}); extract it again") from None


def _what_is_missing(folder: Path, name: str, video: Video, image_tmpl: str) -> str:
    if not folder.is_dir():
        return f"no folder {folder}; check the dataset's root and the list's paths"
    files = sorted(path.name for path in folder.iterdir())
    if not files:
        return f"no frame {name}: folder {folder} is empty; extract the video again"
    return (
        f"no frame {name} in {folder}, which holds {len(files)} files from {files[0]} to {files[-1]}; "
        f"the list says {video.num_frames} frames and image_tmpl is {image_tmpl!r}"
    )
