"""The interface between a dataset and the place where its frames are stored."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
from PIL import Image

from .image_file import check_sizes
from .video_list import DataError, Video

Picture = np.ndarray | Image.Image
COLOUR, GREY = (3,), ()  # the axes of a frame and of a grey image after height and width
FLOW_FORMS = {1: "red x and green y of a file", 2: "an x and a y file each"}  # by the number of files per frame


class FrameSource(ABC):
    """The frames of videos by their numbers. A subclass defines ``decode``, and also ``decode_flow`` if it holds flow.

    ``str(source)`` names the source in the log. A source is made when a dataset's description is read, and each loading
    process gets its own copy. Therefore ``__init__`` must not open files; ``decode`` opens the files that it needs.
    """

    flow_form: str | None = None  # how the flow is stored, in words for the log; None if the source holds no flow

    def length(self, video: Video) -> int:
        """The number of frames (for flow, of flow frames). By default it is the number in the list.

        Errors: ``DataError`` if a subclass cannot find the number.
        """
        return video.num_frames

    def frames(self, video: Video, numbers: list[int]) -> list[np.ndarray]:
        """The RGB frames with these numbers (from 1), in this order, each uint8 (H, W, 3).

        A number that repeats is decoded only once.

        Errors: ``DataError`` if a frame is missing or cannot be read, or if the frames have different sizes. The
        message does not name the line of the list, because the dataset adds it.
        """
        wanted = sorted(set(numbers))
        images = dict(zip(wanted, _checked(self.decode(video, wanted), COLOUR), strict=True))
        return [images[number] for number in numbers]

    def flow(self, video: Video, numbers: list[int]) -> list[np.ndarray]:
        """The optical flow with these numbers (from 1), in this order.

        Each number gives two grey images uint8 (H, W), x and then y.

        Errors: the errors of ``frames``.
        """
        wanted = sorted(set(numbers))
        images = _checked(self.decode_flow(video, wanted), GREY)
        pairs = dict(zip(wanted, zip(images[::2], images[1::2], strict=True), strict=True))
        return [image for number in numbers for image in pairs[number]]

    def check(self, modality: str) -> None:
        """Check that the source holds what the modality with this name reads.

        Errors: ``DataError`` if it does not.
        """
        if modality == "Flow" and self.flow_form is None:
            raise DataError(
                f"modality Flow reads optical flow, which this source ({self}) does not hold; choose modality RGB or "
                "RGBDiff, or a source that holds flow"
            )

    @abstractmethod
    def decode(self, video: Video, numbers: list[int]) -> Iterable[tuple[str, Picture]]:
        """A name (for messages) and the frame for each number. The numbers ascend and do not repeat.

        A frame is an array uint8 (H, W, 3), or a PIL image of mode RGB.

        Errors: ``DataError`` if an image is missing or cannot be read.
        """

    def decode_flow(self, video: Video, numbers: list[int]) -> Iterable[tuple[str, Picture]]:
        """Two names with grey images for each number, first x and then y. The order is x, y, x, y, ...

        A grey image is an array uint8 (H, W), or a PIL image of mode L.
        """
        raise NotImplementedError(f"{type(self).__name__} holds no flow")

    def __str__(self) -> str:
        return type(self).__name__


def _checked(decoded: Iterable[tuple[str, Picture]], last_axes: tuple[int, ...]) -> list[np.ndarray]:
    """The images without their names, as arrays.

    Errors: ``DataError`` if their sizes differ; ``TypeError`` if an image is of another kind, which is a bug of the
    source.
    """
    sizes, images = {}, []
    for name, image in decoded:
        pixels = image if isinstance(image, np.ndarray) else np.array(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 2 + len(last_axes) or pixels.shape[2:] != last_axes:
            form = "(H, W, 3)" if last_axes == COLOUR else "(H, W)"
            raise TypeError(f"{name} is {pixels.dtype} {pixels.shape}; its source must give uint8 {form}")
        sizes[name] = pixels.shape[1::-1]
        # PyTorch takes arrays of this kind without a copy and without a warning.
        images.append(np.require(pixels, requirements=["C_CONTIGUOUS", "WRITEABLE"]))
    check_sizes(sizes)
    return images
