"""A single video that is in no list: a file (by PyAV) or a folder of frames."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from .video_list import DataError

IMAGES = (".jpg", ".jpeg", ".png")


def open_video(path: str | Path) -> tuple[int, Callable[[list[int]], list[Image.Image]]]:
    """The number of frames, and a function that reads RGB frames by their numbers (from 1), in the order asked.

    A folder's images are its frames in the order of their names; a file is decoded twice, to count and to pick, so
    that a long one does not fill the memory. Errors: ``DataError`` for what is missing, empty or no video, and where
    PyAV is not installed.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
        if not files:
            raise DataError(f"--video {path}: the folder holds no {', '.join(IMAGES)} files")
        return len(files), lambda numbers: [_image(files[number - 1]) for number in numbers]
    if not path.is_file():
        raise DataError(f"--video {path}: no such file or folder")
    count = sum(1 for _ in _decode(path))
    if not count:
        raise DataError(f"--video {path}: holds no frame; is it a video?")
    return count, lambda numbers: _pick(path, numbers)


def _image(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"--video: {file} is not a readable image ({error})") from None


def _pick(path: Path, numbers: list[int]) -> list[Image.Image]:
    wanted = set(numbers)
    frames = {number: frame.to_image() for number, frame in enumerate(_decode(path), start=1) if number in wanted}
    return [frames[number] for number in numbers]


def _decode(path: Path):
    try:
        import av
    except ImportError:
        remedy = "pip install av, or give a folder of frames"
        raise DataError(f"--video {path}: reading a file needs PyAV; {remedy}") from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"--video {path}: holds no video stream")
            yield from container.decode(container.streams.video[0])
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"--video {path}: cannot be decoded ({error})") from None
