"""What a dataset asks of the place where its frames are stored."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from PIL import Image

from .image_file import check_sizes
from .video_list import DataError, Video


class FrameSource(ABC):
    """The frames of videos by their numbers; a subclass defines ``decode``, and ``decode_flow`` if it holds flow.

    ``str(source)`` names the source in the log. A source is made while a dataset's description is read, and each
    loading process works on its own copy of it. So ``__init__`` opens no file; ``decode`` opens what it needs.
    """

    flow_form: str | None = None  # how the flow is stored, in words for the log; None if the source holds no flow

    def length(self, video: Video) -> int:
        """The number of frames (of flow frames for flow): the one of the list line, unless a subclass knows better.

        Errors: ``DataError`` if a subclass cannot tell.
        """
        return video.num_frames

    def frames(self, video: Video, numbers: list[int]) -> list[Image.Image]:
        """The RGB frames with these numbers (from 1), in the order asked; a number that repeats is decoded once.

        Errors: ``DataError`` if a frame is missing or cannot be read, or if the frames have several sizes. The message
        does not say where the list names the video: the dataset adds that.
        """
        wanted = sorted(set(numbers))
        images = dict(zip(wanted, _checked(self.decode(video, wanted), "RGB"), strict=True))
        return [images[number] for number in numbers]

    def flow(self, video: Video, numbers: list[int]) -> list[Image.Image]:
        """The optical flow with these numbers (from 1), in the order asked: for each two grey images, x and then y.

        Errors: those of ``frames``.
        """
        wanted = sorted(set(numbers))
        images = _checked(self.decode_flow(video, wanted), "L")
        pairs = dict(zip(wanted, zip(images[::2], images[1::2], strict=True), strict=True))
        return [image for number in numbers for image in pairs[number]]

    def check(self, modality: str) -> None:
        """Errors: ``DataError`` if the source does not hold what this modality (a name) reads."""
        if modality == "Flow" and self.flow_form is None:
            raise DataError(
                f"modality Flow reads optical flow, which this source ({self}) does not hold; choose modality RGB or "
                "RGBDiff, or a source that holds flow"
            )

    @abstractmethod
    def decode(self, video: Video, numbers: list[int]) -> Iterable[tuple[str, Image.Image]]:
        """For each of these numbers, which ascend without a repeat: a name for messages and the RGB image.

        Errors: ``DataError`` if an image is missing or cannot be read.
        """

    def decode_flow(self, video: Video, numbers: list[int]) -> Iterable[tuple[str, Image.Image]]:
        """For each of these numbers the same of x and then of y, as grey images (mode L)."""
        raise NotImplementedError(f"{type(self).__name__} holds no flow")

    def __str__(self) -> str:
        return type(self).__name__


def _checked(decoded: Iterable[tuple[str, Image.Image]], mode: str) -> list[Image.Image]:
    """The images.

    Errors: ``DataError`` for several sizes; ``TypeError``, a bug of the source, for another mode.
    """
    sizes, images = {}, []
    for name, image in decoded:
        if image.mode != mode:
            raise TypeError(f"{name} is an image of mode {image.mode}; its source must give mode {mode}")
        sizes[name] = image.size
        images.append(image)
    check_sizes(sizes)
    return images
