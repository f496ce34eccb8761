"""The pixels of crops: the faithful ones are the released steps' to the bit, the fast ones are within 2 grey levels."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from data import DataError, FrameFolder, TrainDataset, collate, jpeg, transforms
from data.image_file import decode_image
from data.pixels import FAITHFUL, FAST, PIXELS, cut, describe
from data.transforms import Crop
from data.video_list import Video

BILINEAR = Image.Resampling.BILINEAR
# (width, height) of stored frames, the first resize, and the side of the input, as networks use them
USUAL = [
    ((427, 240), (240, 320), 224),
    ((176, 100), (240, 320), 224),
    ((340, 256), (240, 320), 224),
    ((427, 240), 256, 224),
    ((240, 427), 256, 224),
    ((340, 256), None, 224),
    ((64, 48), None, 48),
    ((100, 222), None, 224),  # crops extend past these frames
]


def noise(rng: np.random.Generator, width: int, height: int, grey: bool = False) -> np.ndarray:
    return rng.integers(0, 256, (height, width) if grey else (height, width, 3), np.uint8)


def released(frame: np.ndarray, size: tuple[int, int], crop: Crop, side: int) -> np.ndarray:
    """The released steps, (C, side, side): each of them makes a whole image with Pillow."""
    image = Image.fromarray(frame).resize(size, BILINEAR)
    image = image.crop((crop.x, crop.y, crop.x + crop.width, crop.y + crop.height)).resize((side, side), BILINEAR)
    pixels = np.asarray(image)[:, ::-1] if crop.mirrored else np.asarray(image)
    return pixels.reshape(side, side, -1).transpose(2, 0, 1)


def training_crops(rng: np.random.Generator, size: tuple[int, int], side: int, count: int) -> list[Crop]:
    crops = [transforms.multi_scale_crop(*size, side, rng) for _ in range(count)]
    return [crop._replace(mirrored=bool(rng.integers(2))) for crop in crops]


@pytest.mark.parametrize(("stored", "resize", "side"), USUAL)
def test_pixels_of_usual_sizes(stored, resize, side):
    """Noise has the largest differences. The bounds hold for each crop."""
    rng = np.random.default_rng(0)
    size = transforms.resized_size(*stored, resize)
    frames = [noise(rng, *stored) for _ in range(2)]
    for crop in training_crops(rng, size, side, 12):
        expected = np.stack([released(frame, size, crop, side) for frame in frames])
        np.testing.assert_array_equal(cut(frames, size, [crop], side, FAITHFUL)[0], expected)
        difference = np.abs(cut(frames, size, [crop], side, FAST)[0].numpy().astype(int) - expected)
        assert difference.max() <= 2 and difference.mean() < 0.3


def test_pixels_of_any_sizes():
    """Any sizes, several crops at once, grey frames. The mean difference is that of all crops together."""
    rng, differences = np.random.default_rng(1), []
    for _ in range(150):
        frame = noise(rng, *rng.integers(8, 400, 2), grey=rng.random() < 0.2)
        side = int(rng.integers(8, 240))
        resize = [None, int(rng.integers(8, 300)), tuple(int(n) for n in rng.integers(8, 300, 2))][rng.integers(3)]
        size = transforms.resized_size(*frame.shape[1::-1], resize)
        crops = transforms.test_crops(*size, int(rng.choice([1, 3, 5, 10])), int(rng.integers(8, min(size) + 1)))
        crops += training_crops(rng, size, side, 2)
        expected = np.stack([released(frame, size, crop, side) for crop in crops])
        np.testing.assert_array_equal(cut([frame], size, crops, side, FAITHFUL)[:, 0], expected)
        difference = np.abs(cut([frame], size, crops, side, FAST)[:, 0].numpy().astype(int) - expected)
        assert difference.max() <= 2
        differences.append(difference.mean())
    assert 0 < np.mean(differences) < 0.3


def jpeg_of(image: Image.Image, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **settings)
    return file.getvalue()


def pillows(content: bytes, mode: str) -> np.ndarray | None:
    """Pillow's pixels; ``None`` if Pillow refuses the file."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert(mode))
    except Exception:  # Pillow raises many types
        return None


def test_jpeg_files_give_pillows_pixels():
    rng = np.random.default_rng(2)
    assert jpeg.decoder().decode is not None, jpeg.decoder().reason
    for _ in range(60):
        image = Image.fromarray(noise(rng, *rng.integers(8, 90, 2)))
        settings = {"quality": int(rng.integers(1, 101)), "progressive": bool(rng.integers(2))}
        for made in (image, image.convert("L"), image.convert("CMYK"), image.convert("YCbCr")):
            content = jpeg_of(made, subsampling=int(rng.integers(3)), **settings)
            for mode in ("RGB", "L"):
                expected = pillows(content, mode)
                np.testing.assert_array_equal(decode_image("1.jpg", content, mode), expected)
                ours = jpeg.decode(memoryview(content), mode)
                assert (ours is not None) == ((made.mode, mode) in {("RGB", "RGB"), ("YCbCr", "RGB"), ("L", "L")})


def test_broken_jpeg_files_are_what_pillow_says():
    """Cut and changed files: the pixels are Pillow's, or the file is refused because Pillow refuses it."""
    rng = np.random.default_rng(3)
    content = jpeg_of(Image.fromarray(noise(rng, 60, 44)), quality=80)
    refused = decoded = 0
    for k in range(400):
        broken = bytearray(content)
        if k % 4 == 0:
            del broken[int(rng.integers(2, len(content))) :]
        else:
            broken[int(rng.integers(2, len(content)))] = int(rng.integers(256))
        expected = pillows(bytes(broken), "RGB")
        if expected is None or min(expected.shape[:2]) < 8:
            refused += 1
            with pytest.raises(DataError, match="1.jpg"):
                decode_image("1.jpg", bytes(broken))
        else:
            decoded += 1
            np.testing.assert_array_equal(decode_image("1.jpg", bytes(broken)), expected)
    assert refused > 50 and decoded > 50


def test_a_jpeg_file_is_turned_as_its_xmp_data_say():
    """Some programs write the orientation into XMP data only, which Pillow reads too."""
    frame = Image.fromarray(noise(np.random.default_rng(5), 60, 44))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    turned = pillows(jpeg_of(frame), "RGB").transpose(1, 0, 2)[:, ::-1]  # by 90 degrees
    np.testing.assert_array_equal(decode_image("1.jpg", jpeg_of(frame, xmp=xmp)), turned)
    with pytest.raises(DataError, match="1.jpg is flow with an EXIF orientation"):
        decode_image("1.jpg", jpeg_of(frame, xmp=xmp), flow="{:05d}.jpg")


def test_the_decoder_is_chosen_by_its_pixels(monkeypatch):
    choose = jpeg.decoder.__wrapped__
    assert choose().reason.startswith("simplejpeg ")
    simplejpeg = sys.modules["simplejpeg"]
    decode = simplejpeg.decode_jpeg

    def other(content, colorspace):
        pixels = decode(content, colorspace)
        pixels[0, 0, 0] ^= 1
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", other)
    assert choose() == (None, "Pillow decodes JPEG files, because simplejpeg gives other pixels on this machine")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert choose().decode is None and "simplejpeg cannot be imported" in choose().reason


def test_without_simplejpeg_the_pixels_are_the_same(monkeypatch):
    content = jpeg_of(Image.fromarray(noise(np.random.default_rng(4), 40, 30)))
    expected = decode_image("1.jpg", content)
    monkeypatch.setattr(jpeg, "decoder", lambda: jpeg.Decoder(None, "none"))
    assert jpeg.decode(content, "RGB") is None
    np.testing.assert_array_equal(decode_image("1.jpg", content), expected)


def test_a_jpeg_file_of_too_many_pixels_is_left_to_pillow(monkeypatch):
    content = jpeg_of(Image.new("RGB", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    assert jpeg.decode(content, "RGB") is None
    with pytest.raises(DataError, match="1.jpg is not a readable image .*decompression bomb"):
        decode_image("1.jpg", content)


@pytest.mark.parametrize("way", PIXELS)
def test_clips_are_in_channels_last_memory_and_batches_keep_it(tmp_path, way):
    for k in range(1, 5):
        Image.fromarray(noise(np.random.default_rng(k), 40, 30)).save(tmp_path / f"{k}.jpg")
    videos = [Video(".", 4, label, "list.txt:1") for label in range(3)]
    data = TrainDataset(videos, FrameFolder(tmp_path, "{}.jpg"), 4, None, 24, "none", {}, pixels=way)
    items = [data[0, i] for i in range(3)]
    assert all(clip.is_contiguous(memory_format=torch.channels_last) for clip, _, _ in items)
    clips, labels, places = collate(items)
    assert clips.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    for ours, expected in zip((clips, labels, places), default_collate(items), strict=True):
        assert torch.equal(ours, expected)


def test_the_log_says_which_pixels_a_run_has():
    assert describe(FAST).startswith("pixels: fast; simplejpeg ") and "within 2 grey levels" in describe(FAST)
    assert describe(FAITHFUL).endswith("Pillow resizes, as in the released codes")
