"""A video that is in no list: a file is read as a player shows it, a folder in natural order."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError, EvalDataset, Modality, Video, one_video, open_one_video, video_file
from data.sampling import FrameOrder

av = pytest.importorskip("av")

# Blocks of colour that differ in each frame, (T, H, W, 3). No turn or mirror maps them to themselves.
CLIP = np.random.default_rng(0).integers(20, 236, (6, 6, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2)


def encode(file: Path, clip: np.ndarray, aspect: Fraction | None = None, matrix: tuple | None = None) -> Path:
    """Write a video file of these frames. ``matrix`` is a, b, c, d of the display matrix in an mp4 file."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.height, stream.width = clip.shape[1:3]
        stream.bit_rate = 8_000_000
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for image in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    if matrix is not None:  # PyAV 12 cannot write one; its place is 40 bytes after the name of the track's header
        content, (a, b, c, d) = bytearray(file.read_bytes()), matrix
        numbers = [a * 2**16, b * 2**16, 0, c * 2**16, d * 2**16, 0, 0, 0, 2**30]
        at = content.index(b"tkhd") + 44
        content[at : at + 36] = b"".join(round(number).to_bytes(4, "big", signed=True) for number in numbers)
        file.write_bytes(content)
    return file


def shown(file: Path) -> np.ndarray:
    video, source, _ = open_one_video(file)
    frames = np.stack(source.frames(video, list(range(1, video.num_frames + 1))))
    assert frames.shape[:3] == (video.num_frames, *source.size)
    return frames


def error_of(video: Video, source: one_video.OneVideo, frame: int) -> str:
    """The error of a dataset of the video when this frame is read."""
    order = FrameOrder("repeat", frame)
    error = EvalDataset([video], source, video.num_frames, None, 30, 30, "spread", order=order)[0]
    assert isinstance(error, DataError) and "\n" not in str(error)
    return str(error)


def noise(frames: np.ndarray, expected: np.ndarray) -> float:
    """The mean difference of values, from 0 to 255; infinite if shapes differ."""
    return float(np.abs(frames.astype(float) - expected).mean()) if frames.shape == expected.shape else np.inf


# The matrix (a, b, c, d) shows the stored pixel (x, y) at (ax + cy, bx + dy), and y points down. Expected values use
# numpy.
DISPLAY = {
    "upright": ((1, 0, 0, 1), lambda stored: stored),
    "no matrix": ((0, 0, 0, 0), lambda stored: stored),
    "90 degrees": ((0, 1, -1, 0), lambda stored: stored.swapaxes(1, 2)[:, :, ::-1]),
    "180 degrees": ((-1, 0, 0, -1), lambda stored: stored[:, ::-1, ::-1]),
    "270 degrees": ((0, -1, 1, 0), lambda stored: stored.swapaxes(1, 2)[:, ::-1]),
    "left and right mirrored": ((-1, 0, 0, 1), lambda stored: stored[:, :, ::-1]),
    "up and down mirrored": ((1, 0, 0, -1), lambda stored: stored[:, ::-1]),
    "rows as columns": ((0, 1, 1, 0), lambda stored: stored.swapaxes(1, 2)),
    "rows as columns, backwards": ((0, -1, -1, 0), lambda stored: stored[:, ::-1, ::-1].swapaxes(1, 2)),
}
INVERSE = {"90 degrees": "270 degrees", "270 degrees": "90 degrees"}  # all others are their own inverse


@pytest.mark.parametrize("display", DISPLAY)
def test_a_turned_file_gives_the_frames_of_the_upright_one(tmp_path, display):
    matrix, _ = DISPLAY[display]
    _, unturn = DISPLAY[INVERSE.get(display, display)]
    upright = shown(encode(tmp_path / "upright.mp4", CLIP))
    turned = encode(tmp_path / "turned.mp4", unturn(CLIP), matrix=matrix)
    assert noise(shown(turned), upright) < 6
    assert noise(upright, CLIP) < 6  # the loss of the codec; other frames differ by 50 or more
    plain = display in ("upright", "no matrix")
    with av.open(str(turned)) as container:
        stored = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert noise(stored, upright) < 6 if plain else noise(stored, upright) > 50  # what a reader without the matrix sees
    notes = open_one_video(turned)[2]
    assert notes == [] if plain else "turned by its display matrix" in notes[0] and len(notes) == 1


@pytest.mark.parametrize("matrix", [(0.866, 0.5, -0.5, 0.866), (1, 0, 0.5, 1), (1, 0, 0, 0)])
def test_a_matrix_that_is_no_quarter_turn_is_refused(tmp_path, matrix):
    file = encode(tmp_path / "odd.mp4", CLIP, matrix=matrix)
    with pytest.raises(DataError, match=rf"^{file}: its display matrix \(.*\) is neither quarter turns nor"):
        open_one_video(file)


@pytest.mark.parametrize(
    ("aspect", "size"), [(Fraction(2), (96, 128)), (Fraction(1, 2), (192, 64)), (Fraction(16, 15), (96, 68))]
)
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_pixels_that_are_not_square_are_scaled(tmp_path, aspect, size, ending):
    file = encode(tmp_path / f"clip.{ending}", CLIP, aspect)
    square = shown(encode(tmp_path / "square.mp4", CLIP))
    scaled = [Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR) for frame in square]
    _, source, notes = open_one_video(file)
    assert source.size == size and noise(shown(file), np.stack(scaled)) < 2
    assert notes == [
        f"{file}: pixels {aspect} times as wide as high, stored as 64x96 px, "
        f"shown as {size[1]}x{size[0]} (width x height)"
    ]


def test_pixels_are_scaled_before_they_are_turned(tmp_path):
    file = encode(tmp_path / "clip.mp4", CLIP, Fraction(2), (0, 1, -1, 0))
    wide = shown(encode(tmp_path / "wide.mp4", CLIP, Fraction(2)))
    assert open_one_video(file)[1].size == (128, 96) and noise(shown(file), DISPLAY["90 degrees"][1](wide)) < 2


def test_pixels_of_an_absurd_shape_are_refused(tmp_path):
    file = encode(tmp_path / "clip.mp4", np.zeros((2, 288, 16, 3), np.uint8), Fraction(1, 16))
    with pytest.raises(DataError, match=rf"^{file}: frame 1 is 16x4608 px \(width x height\); a side may be"):
        open_one_video(file)


def test_a_file_whose_frame_size_changes_is_refused_by_frame(tmp_path):
    file = tmp_path / "clip.mjpeg"  # JPEG files one after the other
    for size in [(64, 48)] * 4 + [(48, 64)] * 2:
        content = io.BytesIO()
        Image.new("RGB", size, "red").save(content, "JPEG")
        with open(file, "ab") as whole:
            whole.write(content.getvalue())
    with pytest.raises(DataError, match=rf"^{file}: frame 5 is 48x64 px, frame 1 is 64x48 px \(width x height"):
        open_one_video(file)


def test_a_file_that_was_cut_off_is_refused_or_said(tmp_path):
    long = CLIP.repeat(8, 0)  # 4 seconds
    for ending in ("mp4", "mkv"):
        whole = encode(tmp_path / f"whole.{ending}", long)
        assert open_one_video(whole)[2] == []
        cut = tmp_path / f"cut.{ending}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        if ending == "mp4":
            with pytest.raises(DataError, match=rf"^{cut}: cannot be decoded \(.*\)$"):
                open_one_video(cut)
        else:
            video, source, notes = open_one_video(cut)
            assert 10 < video.num_frames < 40 and len(source.frames(video, [1, video.num_frames])) == 2
            assert notes[0].endswith(" s of 4.0 s by the file's header; is it cut off?")


def test_a_file_that_changes_between_counting_and_reading_is_an_error(tmp_path):
    file = encode(tmp_path / "clip.mp4", CLIP)
    video, source, _ = open_one_video(file)
    encode(file, CLIP[:3])
    assert error_of(video, source, 6) == f"{file}: holds fewer frames than at first; was the file changed?"
    encode(file, CLIP[:, :48])
    assert error_of(video, source, 6).startswith(f"{file}: frame 6 is 64x48 px, frame 1 is 64x96 px (width x height)")


def test_a_title_that_is_not_utf8_does_not_matter(tmp_path):
    file = encode(tmp_path / "clip.mkv", CLIP)
    content = file.read_bytes()
    assert content.count(b"Lavf") >= 2  # the names of the writing library
    file.write_bytes(content.replace(b"Lavf", b"\xff\xfe\xfdf"))
    assert open_one_video(file)[0].num_frames == 6


def grey_folder(folder: Path, names: list[str], size: tuple[int, int] = (40, 30)) -> Path:
    """Write images in the order of the names. The k-th image has the grey level 10 k."""
    folder.mkdir(exist_ok=True)
    for k, name in enumerate(names):
        Image.new("RGB", size, (10 * k,) * 3).save(folder / name, "PNG")
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "10.png", "11.png"],
        ["img_8.jpg", "img_9.JPG", "img_10.jpeg", "img_11.PNG"],
        ["take 2 frame 9.png", "take 2 frame 10.png", "take 10 frame 1.png", "take 10 frame 2.png"],
        ["1_small.png", "2_small.png", "10_small.png"],
        ["after.png", "Before.png", "later.png"],
        ["a2.png", "a10.png", "b.png"],
    ],
)
def test_a_folders_frames_are_in_natural_order(tmp_path, names):
    video, source, _ = open_one_video(grey_folder(tmp_path / "clip", names))
    assert (video.num_frames, source.size) == (len(names), (30, 40))
    order = list(range(1, len(names) + 1))
    assert [frame[0, 0, 0] // 10 for frame in source.frames(video, order)] == [k - 1 for k in order]
    assert [frame[0, 0, 0] // 10 for frame in source.frames(video, [2, 1, 2])] == [1, 0, 1]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([1, 2, 3], None),
        ([7, 8, 9], None),
        ([1, 2, 3, 4, 8, 9], "frames 5 to 7 are missing"),
        ([0, 2], "frame 1 is missing"),
        ([1, 3, 5, 9], "frames 2, 4 and 6 to 8 are missing"),
        (range(0, 160, 20), "frames 1 to 19, 21 to 39, 41 to 59, 61 to 79, 81 to 99 and 2 more gaps are missing"),
    ],
)
def test_a_gap_in_the_numbers_is_said_in_one_line(tmp_path, numbers, said):
    folder = grey_folder(tmp_path / "clip", [f"img_{number}.png" for number in numbers])
    assert open_one_video(folder)[2] == ([] if said is None else [f"{folder}: {said}"])


def test_gaps_are_those_of_names_alike(tmp_path):
    names = ["a1.png", "a2.png", "b8.png", "b11.png", "cover.png"]
    folder = grey_folder(tmp_path / "clip", names)
    assert open_one_video(folder)[2] == [f"{folder}: frames 9 to 10 before b11.png are missing"]


@pytest.mark.parametrize(
    ("first", "second", "number"),
    [("01.jpg", "1.jpg", 1), ("1.jpg", "1.png", 1), ("img_007.png", "img_7.jpeg", 7), ("A3.png", "a03.png", 3)],
)
def test_two_files_for_one_number_are_an_error_that_names_both(tmp_path, first, second, number):
    folder = grey_folder(tmp_path / "clip", ["0.png", first, second, "9.png"])
    with pytest.raises(DataError, match=rf"^{folder}: .* are both frame {number}; leave one of them$") as error:
        open_one_video(folder)
    assert first in str(error.value) and second in str(error.value)


def test_a_folders_frames_have_one_size(tmp_path):
    folder = grey_folder(tmp_path / "clip", [f"{k}.png" for k in range(1, 7)])
    Image.new("RGB", (60, 30)).save(folder / "4.png")
    video, source, _ = open_one_video(folder)
    for numbers in ([3, 4, 5], [4]):  # the fourth frame has another size than announced
        with pytest.raises(DataError, match=r"^4.png is 60x30 px, 1.png is 40x30 px \(width x height"):
            source.frames(video, numbers)
    assert error_of(video, source, 4).startswith(f"{folder}: 4.png is 60x30 px, 1.png is 40x30 px (width x height)")
    assert len(source.frames(video, [3, 5])) == 2


def test_a_folders_images_are_read_as_a_datasets_are(tmp_path):
    """The same function opens both. tests/test_pixels.py tests it."""
    stored, exif = Image.fromarray(CLIP[0]), Image.Exif()
    exif[274] = 6
    folder = grey_folder(tmp_path / "clip", [])
    for k in range(1, 4):
        stored.save(folder / f"{k}.png", exif=exif)
    video, source, _ = open_one_video(folder)
    assert source.size == (64, 96)
    np.testing.assert_array_equal(source.frames(video, [2])[0], DISPLAY["90 degrees"][1](CLIP[:1])[0])
    Image.fromarray(CLIP[0, ..., 0].astype(np.uint16) * 200).save(folder / "2.png")
    assert error_of(video, source, 2).startswith(f"{folder}: {folder}/2.png has 16 bits a channel")
    (folder / "3.png").write_bytes(b"no image")
    assert error_of(video, source, 3).startswith(f"{folder}: {folder}/3.png is not a readable image (")


def test_the_size_costs_no_more_decoding(tmp_path, monkeypatch):
    """A file is decoded once to count its frames, without a conversion of pixels, and once to read some of them.

    One image of a folder is opened to know the size.
    """
    opened, converted = [], []
    to_frame = video_file.shown_frame
    monkeypatch.setattr(av, "open", lambda *a, _open=av.open, **b: opened.append(a) or _open(*a, **b))
    monkeypatch.setattr(video_file, "shown_frame", lambda *a: converted.append(a) or to_frame(*a))
    video, source, _ = open_one_video(encode(tmp_path / "clip.mp4", CLIP))
    assert source.size == (96, 64) and len(opened) == 2 and not converted  # one of the two wrote the file
    source.frames(video, [2, 4, 2])
    assert len(opened) == 3 and len(converted) == 2
    images = []
    monkeypatch.setattr(
        one_video, "read_image", lambda file, _open=one_video.read_image: images.append(file) or _open(file)
    )
    video, source, _ = open_one_video(grey_folder(tmp_path / "folder", [f"{k}.png" for k in range(5)]))
    assert source.size == (30, 40) and len(images) == 1
    source.frames(video, [2, 4, 2])
    assert len(images) == 3


def test_a_video_has_no_flow(tmp_path):
    for path in (encode(tmp_path / "clip.mp4", CLIP), grey_folder(tmp_path / "clip", ["1.png"])):
        video, source, _ = open_one_video(path)
        with pytest.raises(
            DataError, match=r"^modality Flow reads optical flow, which this source \(.*\) does not hold"
        ):
            EvalDataset([video], source, 2, None, 30, 30, "spread", modality=Modality("Flow"))
