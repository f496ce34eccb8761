"""scripts/pack.py: what it writes from each kind of dataset, restarts, bad frames, and what it refuses."""

import fcntl
import re
import shutil
import zipfile

import numpy as np
import pytest
from packed_sets import last_line, pack, pixels, sources, toy, videos_of, write_dataset
from PIL import Image
from toy_run import make_dataset, run

from data import DataError, load_dataset_config
from data.transforms import resized_size

FLOW_FORMS = {
    "one file": ("{:05d}.png", "v 1", "v 1"),
    "two files": ("flow_{}_{:05d}.png", "v 1", "v 1"),
    "numbered": ("{:06d}-{}_{:05d}.png", "000042", "42"),
}


def test_what_packing_prints_and_writes(tmp_path):
    file = make_dataset(tmp_path / "toy", per_class=2)
    output = pack(file, "--workers", 2, "--shard_size", 0.1, "--out", "a/b", cwd=tmp_path)
    frames = sum(video.num_frames for split in ("train", "val") for video in videos_of(file, split))
    shards = sorted((tmp_path / "a/b/small").glob("*.zip"))
    assert len(shards) > 1 and f"file {len(shards)} of {len(shards)}: {frames} of {frames} frames, 0.0 min" in output
    assert re.fullmatch(rf"a/b/small.yaml: {frames} frames, \d\.\d MB in {len(shards)} files", last_line(output))
    for split in ("train", "val"):
        assert (tmp_path / f"a/b/small/{split}.txt").read_text() == (tmp_path / f"toy/{split}.txt").read_text()
    ours, toys = (load_dataset_config(str(path)) for path in (tmp_path / "a/b/small.yaml", file))
    assert (ours.name, ours.num_classes, ours.categories) == (toys.name, toys.num_classes, toys.categories)
    assert not [path for path in (tmp_path / "a/b/small").iterdir() if path.name.startswith(".")]
    for shard in shards:  # any zip program can read them
        with zipfile.ZipFile(shard) as archive:
            assert archive.testzip() is None
            for name in archive.namelist()[:-1]:
                assert archive.read(name) == (tmp_path / "toy/frames" / name).read_bytes()


def test_a_video_of_two_lists_and_lengths_is_packed_once(tmp_path):
    file, _ = toy(tmp_path)
    (video, *_) = videos_of(file, "train")
    lines = f"{video.path} 5 0\n{video.path} {video.num_frames} 0\n"
    own = write_dataset(tmp_path / "toy", lines, image_tmpl="{:05d}.jpg")
    assert f": {video.num_frames} frames, " in pack(own, cwd=tmp_path)
    assert (tmp_path / "packed/own/val.txt").read_text() == lines


@pytest.mark.parametrize("flags", [["--raw"], ["--raw", "--resize", "30x40"], ["--resize", 32]])
def test_raw_and_resized_frames(tmp_path, flags):
    file, packed = toy(tmp_path, *flags)
    folder, store = sources(file, packed)
    (video, *_) = videos_of(packed)
    numbers = [9, 1, video.num_frames, 9]
    size = None if len(flags) == 1 else (30, 40) if "30x40" in flags else 32
    ours = pixels(store.frames(video, numbers))
    frames = [Image.fromarray(frame) for frame in folder.frames(video, numbers)]
    frames = [frame.resize(resized_size(*frame.size, size), Image.Resampling.BILINEAR) for frame in frames]
    expected = pixels(frames)
    assert ours.shape == expected.shape
    if "--raw" in flags:
        np.testing.assert_array_equal(ours, expected)
    else:
        difference = np.abs(ours.astype(int) - expected)
        assert 0 < difference.mean() < 1 and difference.max() < 16
    first = zipfile.ZipFile(tmp_path / "packed/small/shard-00000.zip").namelist()[0]
    assert first.endswith("000001.ppm" if "--raw" in flags else "000001.jpg")


@pytest.mark.parametrize("flags", [[], ["--raw"]], ids=["copied", "raw"])
@pytest.mark.parametrize("form", FLOW_FORMS)
def test_flow(tmp_path, form, flags):
    image_tmpl, folder, path = FLOW_FORMS[form]
    (tmp_path / "frames" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(1, 8):
        for axis in ["xy"] if form == "one file" else "xy":
            noise = rng.integers(0, 256, (20, 30, 3) if axis == "xy" else (20, 30), np.uint8)
            values = {"one file": (number,), "two files": (axis, number), "numbered": (42, axis, number)}[form]
            Image.fromarray(noise).save(tmp_path / "frames" / folder / image_tmpl.format(*values))
    file = write_dataset(tmp_path, f"{path} 7 1\n", image_tmpl=image_tmpl)
    pack(file, *flags, cwd=tmp_path)
    ours, theirs = sources(tmp_path / "packed/own.yaml", file)
    (video,) = videos_of(file)
    images, expected = ours.flow(video, [7, 1, 2, 7]), theirs.flow(video, [7, 1, 2, 7])
    assert [image.ndim for image in images] == [2] * 8 and ours.flow_form == theirs.flow_form
    np.testing.assert_array_equal(pixels(images), pixels(expected))
    ours.check("Flow")
    if form == "one file":
        ours.check("RGB")
        np.testing.assert_array_equal(pixels(ours.frames(video, [3])), pixels(theirs.frames(video, [3])))
    else:
        with pytest.raises(
            DataError, match="own holds x and y files of flow, not frames for RGB; choose modality Flow"
        ):
            ours.check("RGB")


def test_image_files_of_other_formats_are_copied(tmp_path):
    """Also an orientation in EXIF data, which a viewer follows."""
    (tmp_path / "frames/v").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, image in enumerate(noise, start=1):
        Image.fromarray(image).save(tmp_path / f"frames/v/{number}.tif", exif=exif)
    file = write_dataset(tmp_path, "v 2 1\n", image_tmpl="{}.tif")
    pack(file, cwd=tmp_path)
    ours, theirs = (source.frames(videos_of(file)[0], [1, 2]) for source in sources(tmp_path / "packed/own.yaml", file))
    assert ours[0].shape == (30, 20, 3)
    np.testing.assert_array_equal(pixels(ours), pixels(theirs))


def test_frames_of_video_files_are_packed_as_pixels(tmp_path):
    av = pytest.importorskip("av")
    (tmp_path / "frames").mkdir()
    with av.open(str(tmp_path / "frames/film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.height = stream.width = 32
        for grey in range(0, 250, 25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), "rgb24")))
        container.mux(stream.encode())
    file = write_dataset(tmp_path, "film.mp4 10 1\n", source="video")
    message = (
        "error: source 'video' of own has no image files to copy; add --raw for pixels, or --resize for JPEG files"
    )
    assert last_line(pack(file, cwd=tmp_path, code=1)) == message
    assert not (tmp_path / "packed").exists()
    assert run("scripts/pack.py", file, "--raw", cwd=tmp_path).returncode == 0  # this process must not fork after PyAV
    ours, theirs = (source.frames(videos_of(file)[0], [1, 9]) for source in sources(tmp_path / "packed/own.yaml", file))
    np.testing.assert_array_equal(pixels(ours), pixels(theirs))


# Kills the packing processes and then the main process when a video is read.
KILLER = """
import os, signal
from data import FrameFolder
decode = FrameFolder.decode

def fatal(self, video, numbers):
    if video.path == "val/video 1" and len(numbers) > 1:
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(self, video, numbers)

FrameFolder.decode = fatal
"""


def test_a_killed_packing_goes_on(tmp_path):
    file, whole = toy(tmp_path)
    (tmp_path / "killer.py").write_text(KILLER)
    command = ["scripts/pack.py", file, "--workers", 1, "--shard_size", 0.05, "--out", "again"]
    assert run(*command, "--import", "killer.py", cwd=tmp_path).returncode == -9
    folder, expected = tmp_path / "again/small", sorted(whole.with_suffix("").glob("*.zip"))
    early = {path: path.stat().st_mtime_ns for path in folder.glob("*.zip")}
    assert 0 < len(early) < len(expected) and not (tmp_path / "again/small.yaml").exists()
    assert list(folder.glob(".*.part"))  # the shard that was being written
    assert run(*command, cwd=tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in early} == early
    for path in whole.with_suffix("").iterdir():
        if path.name != "plan.json":
            assert (folder / path.name).read_bytes() == path.read_bytes(), path
    assert len(list(folder.iterdir())) == len(list(whole.with_suffix("").iterdir()))


def test_a_packing_process_that_dies_is_an_error(tmp_path):
    file = make_dataset(tmp_path / "toy", per_class=2)
    (tmp_path / "killer.py").write_text(KILLER.replace("os.kill(os.getppid(), signal.SIGKILL)", "pass"))
    result = run("scripts/pack.py", file, "--import", "killer.py", cwd=tmp_path)
    assert result.returncode == 1 and last_line(result.stdout).startswith("error: a process died")


def test_a_full_disk_is_an_error_and_the_packing_goes_on(tmp_path):
    """A limit on the size of files stands for the disk."""
    file, whole = toy(tmp_path)
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
    (tmp_path / "limit.py").write_text(limit)
    command = ["scripts/pack.py", file, "--out", "again", "--shard_size", 0.05]
    result = run(*command, "--import", "limit.py", cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stdout, result.stdout
    message = r"error: again/small/shard-0000\d.zip cannot be written \(File too large\); run the same command again"
    assert re.match(message, last_line(result.stdout)), result.stdout
    assert run(*command, cwd=tmp_path).returncode == 0
    for path in whole.with_suffix("").glob("*.zip"):
        assert (tmp_path / "again/small" / path.name).read_bytes() == path.read_bytes()


def test_bad_frames_stop_the_packing_or_are_left_out(tmp_path):
    file = make_dataset(tmp_path / "toy", per_class=2)
    bad, gone = tmp_path / "toy/frames/train/video 1/00007.jpg", tmp_path / "toy/frames/val/video 2/00003.jpg"
    good = {path: path.read_bytes() for path in (bad, gone)}
    bad.write_bytes(good[bad][:300])
    gone.unlink()
    command = [file, "--workers", 2, "--shard_size", 0.05]
    text = pack(*command, cwd=tmp_path, code=1)
    assert "left out: toy/train.txt:2: toy/frames/train/video 1/00007.jpg is not a readable image (" in text
    assert "left out: toy/val.txt:3: no frame 00003.jpg in toy/frames/val/video 2, which holds " in text
    assert last_line(text).startswith("error: 2 of 8 videos cannot be packed, the lines above say why; repair them")
    assert not (tmp_path / "packed/small.yaml").exists()
    text = pack(*command, "--on_bad_video", "skip", cwd=tmp_path)
    assert text.count("left out: ") == 2 and last_line(text).endswith("files, WITHOUT 2 bad videos, listed above")
    packed = tmp_path / "packed/small.yaml"
    left = [video.path for split in ("train", "val") for video in videos_of(packed, split)]
    assert len(left) == 6 and not {"train/video 1", "val/video 2"} & set(left)
    for path, content in good.items():
        path.write_bytes(content)
    assert "left out" not in pack(*command, cwd=tmp_path)
    folder, store = sources(file, packed)
    for split in ("train", "val"):
        for video in videos_of(packed, split):
            np.testing.assert_array_equal(pixels(store.frames(video, [7, 3])), pixels(folder.frames(video, [7, 3])))
    assert len(videos_of(packed, "train")) == 4


def test_what_packing_refuses(tmp_path, monkeypatch):
    file, packed = toy(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "packed").rglob("*") if path.is_file()}
    (tmp_path / "mine/small").mkdir(parents=True)
    (tmp_path / "mine/small/notes.txt").write_text("my notes")
    for words, message in [
        ([file, "--raw"], "packed/small holds another set (raw: False, now True); delete it or choose another --out"),
        ([file, "--val_list", file.parent / "train.txt"], "packed/small holds another set (val: 4 videos, crc32 "),
        ([packed], "small is packed already (packed/small); name the dataset that it was made from"),
        ([file, "--out", "mine"], "mine/small/notes.txt exists and was not written by scripts.pack; choose another"),
        ([file, "--out", "toy"], "toy/small.yaml exists and was not written by scripts.pack; choose another --out"),
        ([file, "--resize", "wide"], "size 'wide' is neither a short side"),
        ([tmp_path / "none.yaml"], "no dataset '"),
    ]:
        text = pack(*words, cwd=tmp_path, code=1)
        assert last_line(text).startswith(f"error: {message}") and "Traceback" not in text, text
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 1000))
    text = pack(file, "--out", "full", cwd=tmp_path, code=1)
    assert re.search(r"error: full/small: about 0.00\d+ GB are needed and 1e-06 GB are free; free the space", text), (
        text
    )
    assert not (tmp_path / "full").exists()
    pack(file, cwd=tmp_path)  # needs no space, because all shards are there
    assert {path: path.read_bytes() for path in before} == before


def test_two_programs_do_not_pack_into_one_folder(tmp_path):
    file, packed = toy(tmp_path)
    with (packed.with_suffix("") / ".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        result = run("scripts/pack.py", file, cwd=tmp_path)
    message = "error: another process packs into packed/small; wait for it or choose another --out"
    assert result.returncode == 1 and last_line(result.stdout) == message
