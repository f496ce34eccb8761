"""Frames of video files: the few packets that are decoded give what decoding from the start gives, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.video import scene, write_video
from data import DataError, Video, VideoFile, video_jumps
from data.video_file import FileInfo, opened, read_frames
from data.video_jumps import NotCertain, needed_frames

FRAMES, SIZE = 60, (48, 64)  # (height, width)
CLOSED = {"g": "12", "bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"}
X264 = {"g": "12", "sc_threshold": "0", "bf": "3", "preset": "fast"}
VPX = {"g": "12", "deadline": "realtime", "cpu-used": "8", "b": "300k"}
SHOWN = [50 * k + 400 * (k // 7) + k % 3 for k in range(FRAMES)]  # ms; the frame rate varies

# name -> (file ending, encoder, its options, other arguments, most frames that must be decoded for one of them)
SHORT = {
    "H.264 with B-frames": ("mp4", "libx264", X264, {}, 12),
    "H.264, B-frames refer to B-frames": ("mkv", "libx264", X264 | {"bf": "8", "b-pyramid": "normal"}, {}, 12),
    "H.264 without B-frames": ("mp4", "libx264", X264 | {"bf": "0", "refs": "5"}, {}, 12),
    "H.264 with one key frame": ("mp4", "libx264", X264 | {"g": "250"}, {}, 45),
    "H.264 with open groups": ("mp4", "libx264", X264 | {"x264-params": "open-gop=1"}, {}, 45),
    "H.264, intra refresh": ("mkv", "libx264", X264 | {"bf": "0", "x264-params": "intra-refresh=1"}, {}, FRAMES),
    "H.264, interlaced": ("mp4", "libx264", X264 | {"flags": "+ildct+ilme"}, {}, 12),
    "H.264, many slices, 10 bits": ("mkv", "libx264", X264 | {"slices": "4"}, {"pixels": "yuv420p10le"}, 12),
    "H.264 with sound": ("mp4", "libx264", X264, {"sound": True}, 12),
    "H.264, rate varies": ("mp4", "libx264", X264, {"times": SHOWN}, 12),
    "H.264, its index last": ("mov", "libx264", X264, {}, 12),
    "HEVC": ("mp4", "libx265", {"x265-params": "keyint=12:bframes=3:open-gop=0:log-level=error"}, {}, 12),
    "HEVC with open groups": ("mkv", "libx265", {"x265-params": "keyint=12:bframes=3:log-level=error"}, {}, FRAMES),
    "VP8": ("webm", "libvpx", VPX | {"auto-alt-ref": "0"}, {}, 12),
    "VP9": ("webm", "libvpx-vp9", VPX, {}, 12),
    "VP9 with hidden frames": ("webm", "libvpx-vp9", VPX | {"deadline": "good", "lag-in-frames": "16"}, {}, 12),
    "VP9, rate varies": ("mkv", "libvpx-vp9", VPX, {"times": SHOWN}, 12),
    "AV1": ("mkv", "libsvtav1", {"g": "12", "preset": "12", "svtav1-params": "lookahead=0"}, {}, 13),
    "MPEG-4 with B-frames": (
        "mp4",
        "mpeg4",
        {"g": "12", "bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"},
        {},
        14,
    ),
}
# The numbers are not certain here, because there are no time stamps, no headers, or other codecs.
FROM_THE_START = {
    "H.264 in a transport stream": ("ts", "libx264", X264, {}),
    "H.264 without a container": ("h264", "libx264", X264, {}),
    "H.264 in AVI": ("avi", "libx264", X264, {}),
    "MPEG-2": ("mpg", "mpeg2video", {"g": "12", "bf": "2"}, {}),
    "MJPEG": ("avi", "mjpeg", {}, {"pixels": "yuvj420p"}),
}


@pytest.fixture(scope="module")
def clip() -> list[np.ndarray]:
    return list(scene(FRAMES, SIZE))


def from_the_start(file: Path) -> list[np.ndarray]:
    """All frames, in the order in which the decoder gives them."""
    frames = read_frames(file, list(range(1, FileInfo(file).num_frames + 1)))
    return [frames[number] for number in sorted(frames)]


def decoded(file: Path, number: int, num_frames: int) -> int:
    """How many frames are decoded on the short way to this one."""
    with opened(file) as (container, stream, _):
        numbers = [n for n, _ in needed_frames(container, stream, {number}, num_frames)]
    assert number in numbers
    return len(numbers)


def check_all_ways(file: Path) -> list[np.ndarray]:
    """Each frame by itself and 30 random sets of frames, as a list with the file's length asks for them."""
    expected = from_the_start(file)
    number, rng = len(expected), np.random.default_rng(0)
    sets = [[k] for k in range(1, number + 1)]
    sets += [sorted(rng.permutation(number)[: rng.integers(2, 17)] + 1) for _ in range(30)]
    for numbers in sets:
        found = read_frames(file, numbers, number)
        assert sorted(found) == list(numbers)
        for k in numbers:
            np.testing.assert_array_equal(found[k], expected[k - 1], f"frame {k} of {numbers}")
    assert len({frame.tobytes() for frame in expected}) == number  # a wrong number would show
    return expected


@pytest.mark.parametrize("kind", SHORT)
def test_needed_packets_give_the_frames_of_the_whole_file(tmp_path, clip, kind):
    ending, codec, options, others, most = SHORT[kind]
    file = write_video(tmp_path / f"clip.{ending}", codec, clip, 12, options, **others)
    assert len(check_all_ways(file)) == FRAMES
    counts = [decoded(file, k, FRAMES) for k in range(1, FRAMES + 1)]
    assert max(counts) <= most, counts
    if most == 45:  # with one start, only the skipped B-frames make a difference
        assert max(counts) > 25, counts
    elif codec == "libx264" and options["bf"] != "0":
        assert sum(counts) < 340, counts  # 390 = 60 / 12 * (1 + 2 + ... + 12) if nothing is skipped


@pytest.mark.parametrize("kind", FROM_THE_START)
def test_other_files_are_decoded_from_the_start(tmp_path, clip, kind):
    ending, codec, options, others = FROM_THE_START[kind]
    file = write_video(tmp_path / f"clip.{ending}", codec, clip, 12, options, **others)
    assert len(check_all_ways(file)) == FRAMES
    with pytest.raises(NotCertain):
        decoded(file, 30, FRAMES)


@pytest.mark.parametrize(
    ("ending", "codec", "options"),
    [
        ("avi", "mpeg4", {"g": "12", "bf": "2"}),
        ("avi", "mpeg4", {"g": "12"}),
        ("mp4", "mpeg4", {"g": "12", "bf": "2"}),
        ("webm", "libvpx", {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k"}),
    ],
)
def test_files_that_are_partly_certain_give_the_same_frames(tmp_path, clip, ending, codec, options):
    assert len(check_all_ways(write_video(tmp_path / f"clip.{ending}", codec, clip, 12, options))) == FRAMES


def copied(file: Path, to: Path, change: Callable) -> Path:
    """The same packets in another file. ``change`` may change the time stamps of each."""
    with av.open(str(file)) as source, av.open(str(to), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                change(packet)
                packet.stream = stream
                target.mux(packet)
    return to


def in_order_of_decoding(packet: av.Packet) -> None:
    packet.pts = packet.dts


def repeat_one(packet: av.Packet) -> None:
    frame = packet.duration
    packet.pts = 20 * frame if packet.pts == 21 * frame else packet.pts


def test_wrong_time_stamps_are_not_believed(tmp_path, clip):
    """The decoder knows the order of frames without them. Two frames at one time have no order by them."""
    whole = write_video(tmp_path / "whole.mp4", "libx264", clip, 12, X264)
    expected = check_all_ways(whole)
    of_decoding = copied(whole, tmp_path / "order.mkv", in_order_of_decoding)
    repeated = copied(whole, tmp_path / "repeated.mkv", repeat_one)
    for file in (of_decoding, repeated):
        np.testing.assert_array_equal(check_all_ways(file), expected)
        with pytest.raises(NotCertain):
            decoded(file, 30, FRAMES)


def test_frames_that_an_edit_list_leaves_out_are_not_counted(tmp_path, clip):
    file = write_video(tmp_path / "clip.mp4", "libx264", clip, 12, X264)
    whole, content = from_the_start(file), bytearray(file.read_bytes())
    at = content.index(b"elst") + 16  # the time at which the edit begins; a frame takes 1024 units
    first = int.from_bytes(content[at : at + 4], "big")
    content[at : at + 4] = (first + 10 * 1024).to_bytes(4, "big")
    file.write_bytes(content)
    assert np.array_equal(check_all_ways(file), whole[10:])
    for k in (1, 20, 50):  # a list that counts all packets
        assert np.array_equal(read_frames(file, [k], FRAMES)[k], whole[k + 9])


def test_a_list_with_another_length_gives_the_same_frames(tmp_path, clip):
    file = write_video(tmp_path / "clip.mp4", "libx264", clip, 12, X264)
    expected, source = from_the_start(file), VideoFile(tmp_path)
    for length in (40, FRAMES, FRAMES + 9):
        frames = source.frames(Video("clip.mp4", length, 0, "list.txt:1"), [40, 13, 40])
        assert np.array_equal(np.stack(frames), np.stack([expected[39], expected[12], expected[39]]))
    with pytest.raises(DataError, match="clip.mp4 ends before frame 61, but the list says 69 frames; correct the list"):
        source.frames(Video("clip.mp4", FRAMES + 9, 0, "list.txt:1"), [13, 61])


def test_a_large_file_is_not_held_in_memory(tmp_path, clip, monkeypatch):
    file = write_video(tmp_path / "clip.mp4", "libx264", clip, 12, X264)
    assert decoded(file, 30, FRAMES) < 12
    monkeypatch.setattr(video_jumps, "LARGEST", file.stat().st_size - 1)
    with pytest.raises(NotCertain):
        decoded(file, 30, FRAMES)


def test_damaged_packets_give_the_frames_of_decoding_from_the_start(tmp_path, clip):
    """H.264 hides most damage: it draws something instead. Some files then have fewer frames.

    A few damaged files cannot be decoded at all. Which ones is not certain, because x264 does not always write the same
    bytes.
    """
    whole, rng = write_video(tmp_path / "whole.mp4", "libx264", clip, 12, X264).read_bytes(), np.random.default_rng(0)
    hidden = 0
    for i in range(12):
        content = bytearray(whole)
        for place in rng.integers(len(whole) // 8, len(whole) // 2, 4):
            content[place] ^= 1 << rng.integers(8)
        file = tmp_path / f"damaged{i}.mp4"
        file.write_bytes(content)
        try:
            expected = from_the_start(file)
        except DataError:
            continue
        hidden += 1
        for _ in range(20):
            numbers = sorted(rng.permutation(len(expected))[:8] + 1)
            found = read_frames(file, numbers, FRAMES)
            assert all(np.array_equal(found[k], expected[k - 1]) for k in numbers)
    assert hidden >= 4
