"""Packed frames: the same weights and scores as from the folder, damaged files, shared reading, large indexes."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from packed_sets import last_line, pixels, sources, toy, videos_of
from toy_run import quick_flags, run_inside

from data import DataError, EvalDataset, PackedStore, TrainDataset, Video
from data.packed import FRAME, Shard, write_index

BEST = "resnet_rgb_model_best.pth.tar"


def train_and_test(folder: Path, file: Path, run_name: str, **flags: object) -> tuple[dict, np.ndarray, str]:
    """The weights after two epochs, and the scores and the Top-1 line of the best checkpoint."""
    result = run_inside("main.py", file, "tsm_tiny", "--run", run_name, *quick_flags(**flags), cwd=folder)
    assert result.returncode == 0 and "finished: 2 epochs" in result.stdout, result.stdout
    weights = ["--weights", f"net_runs/{run_name}/{BEST}", "--device", "cpu", "--views", "3x2", "--crop", 40]
    flags = ["--workers", flags["workers"], "--scores", f"{run_name}.npz"]
    result = run_inside("test_models.py", file, *weights, *flags, cwd=folder)
    assert result.returncode == 0, result.stdout
    (line,) = re.findall(r"small, 8 videos.*Top-1.*", result.stdout)
    content = torch.load(folder / f"net_runs/{run_name}/resnet_rgb_epoch_2_checkpoint.pth.tar", weights_only=True)
    return content["state_dict"], np.load(folder / f"{run_name}.npz")["scores"], line


def test_packed_frames_train_and_test_like_the_folder(tmp_path):
    file, packed = toy(tmp_path, per_class=4)
    expected = train_and_test(tmp_path, file, "folder", workers=0)
    (tmp_path / "toy/frames").rename(tmp_path / "gone")
    assert len(np.unique(expected[1])) > 8
    for workers in (0, 2):
        ours = train_and_test(tmp_path, packed, f"packed{workers}", workers=workers)
        assert ours[0].keys() == expected[0].keys()
        assert all(torch.equal(ours[0][key], expected[0][key]) for key in ours[0])
        np.testing.assert_array_equal(ours[1], expected[1])
        assert ours[2] == expected[2]
    assert (
        "modality: RGB, one frame a segment (packed frames), 3 channels" in (tmp_path / "logs/packed0.log").read_text()
    )


@pytest.fixture(scope="module")
def toy_store(tmp_path_factory) -> tuple[Path, Path]:
    return toy(tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(toy_store, tmp_path) -> Path:
    """A copy of a packed toy set, which a test may damage."""
    shutil.copytree(toy_store[1].parent, tmp_path / "packed")
    return tmp_path / "packed/small"


def first_item(folder: Path) -> str:
    """What goes wrong with the first validation video of a packed set, as the dataset says it."""
    (video, *_) = videos_of(folder.with_suffix(".yaml"))
    try:
        item = EvalDataset([video], PackedStore(folder), 4, None, 40, 40, "spread")[0]
    except DataError as error:
        return str(error)
    assert isinstance(item, DataError), "read without an error"
    return str(item)


def shard_of_first(folder: Path) -> Path:
    row, _ = PackedStore(folder).index.find(videos_of(folder.with_suffix(".yaml"))[0])
    return folder / f"shard-{row['shard']:05d}.zip"


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def cut(file: Path, size: int) -> None:
    os.truncate(file, size)


AGAIN = "; copy it again from a good copy, or delete it and run scripts.pack again"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), " cannot be read (No such file or directory)"),
        (lambda file: cut(file, 5000), " has 5000 bytes, but the index says "),
        (lambda file: cut(file, 0), " has 0 bytes, but the index says "),
        (lambda file: flip(file, 0), " is damaged (the checksum of its ends is not the index's)"),
        (lambda file: flip(file, -3), " is damaged (the checksum of its ends is not the index's)"),
    ],
    ids=["missing", "cut", "empty", "first byte", "last bytes"],
)
def test_a_damaged_shard_names_itself(store, damage, message):
    shard = shard_of_first(store)
    damage(shard)
    text = first_item(store)
    assert text.startswith(f"{store}/val.txt:1: {shard}{message}") and text.endswith(AGAIN) and "\n" not in text, text


def test_a_damaged_frame_names_its_shard_and_other_frames_are_read(store):
    shard, (video, *_) = shard_of_first(store), videos_of(store.with_suffix(".yaml"))
    _, rows = PackedStore(store).index.find(video)
    flip(shard, int(rows[4]["offset"] + rows[4]["bytes"] // 2))
    assert len(PackedStore(store).frames(video, [4, 6])) == 2
    message = f"frame 5 of {video.path} in {shard} is damaged (its checksum is not the index's){AGAIN}"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        PackedStore(store).frames(video, [4, 5, 6])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "store.json",
            lambda file: file.unlink(),
            "no packed frames in {folder} (no store.json); check the dataset's ro",
        ),
        ("store.json", lambda file: cut(file, 200), "{file} cannot be read ("),
        ("store.json", lambda file: file.write_text("[1]"), "{file} cannot be read ("),
        (
            "store.json",
            lambda file: file.write_text(file.read_text().replace("0000", "0001")),
            "{file} is damaged (its ",
        ),
        ("videos.npy", lambda file: file.unlink(), "{file} cannot be read (No such file"),
        ("videos.npy", lambda file: flip(file, -1), "{file} is damaged (its checksum is not that of store.json)"),
        ("videos.npy", lambda file: cut(file, 150), "{file} cannot be read ("),
        ("videos.npy", lambda file: cut(file, 0), "{file} cannot be read ("),
        ("videos.npy", lambda file: np.save(file, np.zeros(3)), "{file} is not the file that store.json describes"),
        ("videos.npy", lambda file: np.save(file, np.array([{}]), allow_pickle=True), "{file} cannot be read ("),
        ("frames.npy", lambda file: cut(file, 600), "{file} cannot be read ("),
        (
            "frames.npy",
            lambda file: file.write_bytes(file.read_bytes() + b"1"),
            "{file} is not the file that store.json",
        ),
        (
            "frames.npy",
            lambda file: np.save(file, np.zeros_like(np.load(file))),
            "val.txt:1: {file} is damaged at video '",
        ),
    ],
)
def test_a_damaged_index_names_its_file(store, name, damage, message):
    damage(store / name)
    text = first_item(store)
    assert message.format(file=store / name, folder=store) in text and "\n" not in text, text


def test_a_missing_video_or_frame_is_an_error_with_the_list_line(store):
    for path, n, message in [
        ("val/none", 9, f"no video 'val/none' in {store}, which holds 8 videos; use the lists beside it"),
        ("zzz", 9, "no video 'zzz' in "),
        ("val/video 0", 99, f"of val/video 0 in {store}, which holds "),
    ]:
        item = EvalDataset([Video(path, n, 0, "list.txt:7")], PackedStore(store), 8, None, 40, 40, "spread")[0]
        assert isinstance(item, DataError) and str(item).startswith("list.txt:7: no "), item
        assert message in str(item) and "\n" not in str(item)
    (store / "store.json").unlink()
    result = run_inside("main.py", "packed/small.yaml", "tsn_tiny", "--run", "x", *quick_flags(), cwd=store.parents[1])
    message = "error: no packed frames in packed/small (no store.json)"
    assert result.returncode == 1 and last_line(result.stdout).startswith(message), result.stdout


def read_all(source: PackedStore, videos: list[Video], queue, seed: int) -> None:
    sums = {}
    for i in np.random.default_rng(seed).permutation(len(videos)):
        frames = source.frames(videos[i], list(range(1, videos[i].num_frames + 1)))
        sums[videos[i].path] = zlib.crc32(pixels(frames))
    queue.put(sums)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_processes_read_at_once(toy_store, method):
    """With fork they share the memory maps of this process; with spawn the source is pickled."""
    file, packed = toy_store
    folder, store = sources(file, packed)
    videos = videos_of(packed) + videos_of(packed, "train")
    store.frames(videos[0], [1])
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    processes = [context.Process(target=read_all, args=(store, videos, queue, seed)) for seed in (1, 2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    expected = {v.path: zlib.crc32(pixels(folder.frames(v, list(range(1, v.num_frames + 1))))) for v in videos}
    assert found == [expected, expected]


def test_a_source_opens_no_file_before_it_reads(tmp_path, toy_store):
    source = PackedStore(tmp_path / "none")
    assert str(source) == "packed frames"
    train = TrainDataset([], PackedStore(toy_store[1].with_suffix("")), 4, None, 40, "none", {})
    assert len(pickle.dumps(train)) < 2000  # no index and no map travels to a loading process
    with pytest.raises(DataError, match=r"no packed frames in .*none \(no store.json\)"):
        source.check("RGB")


def test_an_index_of_a_million_frames_opens_in_a_second(tmp_path):
    videos, frames = 25_000, 40
    rng = np.random.default_rng(0)
    rows = np.zeros(videos * frames, FRAME)
    rows["offset"], rows["bytes"] = np.arange(len(rows)) * 8, 8
    content = rng.integers(0, 256, (len(rows), 8), np.uint8).tobytes()
    rows["crc32"] = [zlib.crc32(content[i : i + 8]) for i in range(0, len(content), 8)]
    (tmp_path / "shard-00000.zip").write_bytes(content)
    ends = zlib.crc32(content[-1024:], zlib.crc32(content[:1024]))
    named = [(f"something/{i}", frames) for i in rng.permutation(videos)]
    write_index(tmp_path, [Shard("shard-00000.zip", len(content), ends, named, [], rows)], "{:05d}.jpg", 1)
    del rows
    source = PackedStore(tmp_path)
    begin = time.perf_counter()
    for place in (0, 12_345, videos - 1):
        found = list(source.read(Video(named[place][0], frames, 0, ""), [3, 40]))
        first = place * frames * 8
        assert [bytes(view) for _, view in found] == [content[first + 8 * k :][:8] for k in (2, 39)]
    seconds = time.perf_counter() - begin
    assert seconds < 1, f"{seconds:.2f} s"
    assert json.loads((tmp_path / "store.json").read_text())["counts"] == {"videos": videos, "files": videos * frames}
