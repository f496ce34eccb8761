"""Bad and unusual files for ``source: video`` and ``--video``: their frames, or an error of one line."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks.video import scene, write_video
from data import DataError, EvalDataset, Video, VideoFile, open_one_video

SIZE, FRAMES, X264 = (48, 64), 30, {"g": "12"}
OPTIONS = {"libx264": X264, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}, "mpeg4": {"b": "2M"}}


@pytest.fixture(scope="module")
def clip() -> list[np.ndarray]:
    return list(scene(FRAMES, SIZE))


def write_sound(file: Path) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 48000
        container.mux([*stream.encode(tone), *stream.encode()])


def write_one_jpeg(file: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", SIZE[::-1], "red").save(content, "JPEG")
    file.write_bytes(content.getvalue())


def write_cut(file: Path, codec: str, clip: list[np.ndarray], share: float) -> None:
    write_video(file, codec, clip, 12)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def write_playlist(file: Path, clip: list[np.ndarray]) -> None:
    write_video(file.with_name("other.mp4"), "libx264", clip, 12, X264)
    file.write_text("ffconcat version 1.0\nfile other.mp4\n")


NOT_DECODED, LIST = "cannot be decoded (", "but the list says 30 frames; correct the list"
# name -> (how it is made, the error of source: video, the error of --video); no error: the frames are read
BAD = {
    "missing.mp4": (lambda file, clip: None, "no file ", "no such file or folder"),
    "dangling.mp4": (lambda file, clip: file.symlink_to("nowhere"), "no file ", "no such file or folder"),
    "folder.mp4": (lambda file, clip: file.mkdir(), "no file ", "the folder holds no .jpg"),
    "empty.mp4": (lambda file, clip: file.touch(), NOT_DECODED, NOT_DECODED),
    "text.mp4": (lambda file, clip: file.write_text("no video\n" * 99), NOT_DECODED, NOT_DECODED),
    "zeros.mp4": (lambda file, clip: file.write_bytes(bytes(5000)), NOT_DECODED, NOT_DECODED),
    "playlist.mp4": (write_playlist, "is a list of other files; give a", "is a list of other files; give a"),
    "sound.mp4": (lambda file, clip: write_sound(file), "holds no video stream; is it", "holds no video stream; is it"),
    "half.mp4": (lambda file, clip: write_cut(file, "mpeg4", clip, 0.5), NOT_DECODED, NOT_DECODED),
    "half.mkv": (lambda file, clip: write_cut(file, "mpeg4", clip, 0.5), LIST, None),
    "short.mp4": (lambda file, clip: write_video(file, "libx264", clip[:20], 12, X264), LIST, None),
    "one frame.mp4": (lambda file, clip: write_video(file, "libx264", clip[:1], 12, X264), LIST, None),
    "still.mp4": (lambda file, clip: write_one_jpeg(file), LIST, None),
    "tiny.mp4": (
        lambda file, clip: write_video(file, "mpeg4", [image[:6, :6] for image in clip]),
        "frame 1 is 6x6 px (width x height); a frame needs at least 8 px",
        "frame 1 is 6x6 px (width x height); a frame needs at least 8 px",
    ),
}
# name -> (encoder, pixel format, frame size)
UNUSUAL = {
    "odd sizes.mp4": ("mpeg4", "yuv420p", (47, 63)),
    "odd sizes.webm": ("libvpx-vp9", "yuv420p", (47, 63)),
    "10 bits.mp4": ("libx264", "yuv420p10le", SIZE),
    "alpha.mov": ("png", "rgba", SIZE),
    "alpha.webm": ("libvpx-vp9", "yuva420p", SIZE),
    "grey.mkv": ("ffv1", "gray", SIZE),
    "16 bits.mkv": ("ffv1", "gray16le", SIZE),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_errors_of_one_line(tmp_path, clip, name):
    make, in_a_list, alone = BAD[name]
    make(tmp_path / name, clip)
    item = EvalDataset([Video(name, FRAMES, 0, "list.txt:7")], VideoFile(tmp_path), 8, None, 40, 40, "spread")[0]
    assert isinstance(item, DataError) and "\n" not in str(item)
    assert str(item).startswith("list.txt:7: ") and str(tmp_path / name) in str(item) and in_a_list in str(item), item
    if alone is None:
        video, source, _ = open_one_video(tmp_path / name)
        assert 1 <= video.num_frames < FRAMES and len(source.frames(video, [1, video.num_frames])) == 2
    else:
        with pytest.raises(DataError) as error:
            open_one_video(tmp_path / name)
        message = str(error.value)
        assert message.startswith(f"{tmp_path / name}: ") and alone in message and "\n" not in message, message


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_files_are_read(tmp_path, clip, name):
    codec, pixels, (height, width) = UNUSUAL[name]
    written = [image[:height, :width] for image in clip]
    file = write_video(tmp_path / name, codec, written, 12, OPTIONS.get(codec), pixels=pixels)
    video, source, notes = open_one_video(file)
    assert (video.num_frames, source.size, notes) == (FRAMES, (height, width), [])
    numbers = [1, 16, FRAMES]
    frames = VideoFile(tmp_path).frames(Video(name, FRAMES, 0, "list.txt:1"), numbers)
    for number, ours, alone in zip(numbers, frames, source.frames(video, numbers), strict=True):
        np.testing.assert_array_equal(ours, alone)
        grey = np.array([0.299, 0.587, 0.114])  # some files hold no colours
        assert np.abs(np.asarray(ours) @ grey - written[number - 1] @ grey).mean() < 8  # the loss of the codec
