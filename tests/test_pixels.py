"""Images of all formats are read as viewers show them, or refused by name. None becomes constant, turned or black."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from data import DataError, EvalDataset, FrameFolder, Modality, TrainDataset, image_file, transforms
from data.modality import RGB
from data.video_list import Video

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
ORIENTATION = 274
FLOW = Modality("Flow", 1)


def video(folder, images: dict[str, object]) -> Video:
    """Write a video of these files. Images are saved, bytes are written as they are."""
    for name, image in images.items():
        if isinstance(image, bytes):
            (folder / name).write_bytes(image)
        else:
            image.save(folder / name)
    return Video(".", max(1, len(images)), 0, "list.txt:7")


def read(folder, images: dict[str, object], image_tmpl: str = "{}.png", modality: Modality = RGB) -> list[np.ndarray]:
    made = video(folder, images)
    return [np.asarray(image) for image in modality.read(made, [1], FrameFolder(folder, image_tmpl))]


def png_of_16_bits(values: np.ndarray, colour_type: int) -> bytes:
    """A PNG that Pillow cannot write; ``values`` (H, W, C) below 65536."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image: Image.Image, form: str, orientation: int | None = None, **settings: object) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x010F] = "maker"
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image.save(file, form, exif=exif, **settings)
    return file.getvalue()


GREY = PIXELS[..., 0]
DEEP = {
    "png": (saved(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"), "16 bits"),
    "tiff of 16": (saved(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"), "16 bits"),
    "tiff of floats": (saved(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"), "32 bits"),
    "tiff of 32": (saved(Image.fromarray(GREY.astype(np.int32) * 65537), "TIFF"), "32 bits"),
}


@pytest.mark.parametrize("make", DEEP)
def test_images_of_more_than_8_bits_are_refused_by_name(tmp_path, make):
    """Pillow clips such values at 255 (or rounds values below 1 to 0), so images would become constant."""
    content, bits = DEEP[make]
    for modality, image_tmpl, name in (
        (RGB, "{}.png", "1.png"),
        (FLOW, "{}.png", "1.png"),
        (FLOW, "{}_{}.png", "x_1.png"),
    ):
        with pytest.raises(DataError, match=rf"^/\S*/{name} has {bits} a channel .* convert it to 8 bits$"):
            read(tmp_path, {name: content}, image_tmpl, modality)


def test_colours_of_16_bits_become_their_upper_bytes(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (30, 40, 4))
    for colour_type, channels in ((2, 3), (6, 4)):
        (image,) = read(tmp_path, {"1.png": png_of_16_bits(values[..., :channels], colour_type)})
        np.testing.assert_array_equal(image, values[..., :3] >> 8)


def test_images_of_8_bits_and_fewer_keep_their_values(tmp_path):
    colour, grey = Image.fromarray(PIXELS), Image.fromarray(GREY)
    palette, bits = colour.quantize(16), grey.convert("1")
    made = {"P": palette, "1": bits, "L": grey, "RGB": colour, "RGBA": colour.convert("RGBA")}
    for mode, image in made.items():
        assert image.mode == mode
        (result,) = read(tmp_path, {"1.png": image})
        np.testing.assert_array_equal(result, np.asarray(image.convert("RGB")))
        assert result.std() > 20
    jpeg = saved(colour, "JPEG", quality=90)
    (result,) = read(tmp_path, {"1.jpg": jpeg}, "{}.jpg")
    np.testing.assert_array_equal(result, np.asarray(Image.open(io.BytesIO(jpeg))))


# EXIF's orientation says where the stored first row and first column belong. Expected values use numpy.
UPRIGHT = {
    None: lambda stored: stored,
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],  # the first row is the right side
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],  # the first row is the left side
    9: lambda stored: stored,  # no such orientation
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_frames_are_turned_as_their_exif_data_say(tmp_path, form, orientation):
    content = saved(Image.fromarray(PIXELS), form, orientation)
    stored = np.asarray(Image.open(io.BytesIO(saved(Image.fromarray(PIXELS), form))))
    (result,) = read(tmp_path, {"1.png": content})
    np.testing.assert_array_equal(result, UPRIGHT[orientation](stored))


def test_exif_data_at_the_end_of_a_png_count(tmp_path):
    content = saved(Image.fromarray(PIXELS), "PNG", 6)
    at = content.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", content[at : at + 4])[0]
    moved = content[:at] + content[at + length : -12] + content[at : at + length] + content[-12:]
    assert moved.index(b"IDAT") < moved.index(b"eXIf")
    (result,) = read(tmp_path, {"1.png": moved})
    np.testing.assert_array_equal(result, UPRIGHT[6](PIXELS))


def test_broken_exif_data_do_not_make_an_image_unreadable(tmp_path):
    content = saved(Image.fromarray(PIXELS), "JPEG", 6)
    broken = content.replace(b"Exif\0\0MM\0*", b"Exif\0\0ZZZZ").replace(b"Exif\0\0II*\0", b"Exif\0\0ZZZZ")
    assert broken != content
    (result,) = read(tmp_path, {"1.jpg": broken}, "{}.jpg")
    np.testing.assert_array_equal(result, np.asarray(Image.open(io.BytesIO(saved(Image.fromarray(PIXELS), "JPEG")))))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_turned_flow_is_refused_by_name(tmp_path, form):
    for orientation in (2, 6):
        for image_tmpl, image in (("{}.png", PIXELS), ("{}_{}.png", GREY)):
            name = image_tmpl.format("x", 1) if "_" in image_tmpl else "1.png"
            content = saved(Image.fromarray(image), form, orientation)
            with pytest.raises(DataError, match=rf"^/\S*/{name} is flow with an EXIF orientation.*remove"):
                read(tmp_path, {name: content}, image_tmpl, FLOW)
    assert len(read(tmp_path, {"1.png": saved(Image.fromarray(PIXELS), form, 1)}, modality=FLOW)) == 2


def train_set(folder, made: Video) -> TrainDataset:
    settings = {"resize": None, "input_size": 24, "flip": "none", "mirror_pairs": {}}
    return TrainDataset([made], FrameFolder(folder, "{}.png"), made.num_frames, **settings)


def items(folder, made: Video) -> list:
    """The video as testing sees it and as training sees it, with all frames."""
    settings = {"resize": None, "crop_size": 30, "input_size": 24, "short_videos": "spread"}
    test_set = EvalDataset([made], FrameFolder(folder, "{}.png"), made.num_frames, **settings)
    return [test_set[0], train_set(folder, made)[0, 0]]


@pytest.mark.parametrize("size", [(60, 30), (20, 20), (30, 40)])
def test_a_frame_of_another_size_than_the_others_is_refused_by_name(tmp_path, size):
    """A crop that fits the larger frames would reach past the smaller ones, and the network would train on black."""
    frames = {f"{k}.png": Image.new("RGB", size if k == 1 else (40, 30), "white") for k in range(1, 5)}
    for error in items(tmp_path, video(tmp_path, frames)):
        assert isinstance(error, DataError), "the frame was taken"
        expected = f"list.txt:7: {tmp_path}/1.png is {size[0]}x{size[1]} px, {tmp_path}/2.png is 40x30 px (width x "
        assert str(error).startswith(expected) and "\n" not in str(error)


def test_x_and_y_of_flow_have_one_size(tmp_path):
    made = video(tmp_path, {"x_1.png": Image.new("L", (40, 30)), "y_1.png": Image.new("L", (40, 32))})
    with pytest.raises(DataError, match=r"^/.*/y_1.png is 40x32 px, /.*/x_1.png is 40x30 px"):
        FLOW.read(made, [1], FrameFolder(tmp_path, "{}_{}.png"))


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000), (7, 7), (7, 40), (8, 8 * 256 + 1)])
def test_frames_too_small_or_too_narrow_for_crops_are_refused_by_name(tmp_path, size):
    """A frame of 1000 x 1 px would be black in training crops, and 256,000 x 256 px after a resize."""
    for error in items(tmp_path, video(tmp_path, {"1.png": Image.new("RGB", size, "white")})):
        assert isinstance(error, DataError), "the frame was taken"
        assert str(error).startswith(f"list.txt:7: {tmp_path}/1.png is {size[0]}x{size[1]} px (width x height); ")
        assert "\n" not in str(error)


def test_every_training_crop_of_the_smallest_frame_is_white(tmp_path):
    side = image_file.MIN_SIDE
    data = train_set(tmp_path, video(tmp_path, {"1.png": Image.new("RGB", (side, side), "white")}))
    for epoch in range(50):
        assert data[epoch, 0][0].min() == 255
    assert len(set(transforms.crop_sizes(side, side, 24))) == 10  # of four different sides
    assert len(set(transforms.crop_sizes(4, 4, 24))) < 10


@pytest.mark.parametrize("content", [b"no image", b""])
def test_bytes_that_make_pillow_raise_what_they_like_are_errors_of_one_line(tmp_path, content, monkeypatch):
    beginning = r"it begins with b'no image'" if content else "it is empty"
    with pytest.raises(DataError, match=rf"^/\S*1.png is not a readable image \({beginning}\); extract it again$"):
        read(tmp_path, {"1.png": content})
    for error in (KeyError("mode"), RuntimeError("two\nlines"), MemoryError()):

        def broken(_, error=error, **__):
            raise error

        monkeypatch.setattr(image_file.Image, "open", broken)
        with pytest.raises(DataError, match=r"^[^\n]*1.png is not a readable image \([^\n]+\); extract it again$"):
            read(tmp_path, {"1.png": content})
        monkeypatch.undo()


def test_no_program_in_an_image_file_is_run(tmp_path, monkeypatch):
    """An EPS file is a program, and Pillow would give it to Ghostscript, whatever the name of the file says."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
    started = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(True) or Image.new("RGB", (20, 20))
    )
    np.asarray(Image.open(io.BytesIO(content)))
    assert started.pop()
    with pytest.raises(DataError, match=r"1.jpg is not a readable image \(it begins with b'%!PS.*; extract it again$"):
        read(tmp_path, {"1.jpg": content}, "{}.jpg")
    assert not started


def test_a_pipe_is_no_frame(tmp_path):
    os.mkfifo(tmp_path / "1.jpg")
    with pytest.raises(DataError, match=r"1.jpg is not a readable image \(not a regular file but a pipe"):
        read(tmp_path, {}, "{}.jpg")
