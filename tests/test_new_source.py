"""Sources of frames: a user's own source, folders and video files give the same scores."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from toy_run import NAMES, quick_flags, run_inside

from data import (
    DataError,
    EvalDataset,
    FrameFolder,
    Video,
    VideoFile,
    load_dataset_config,
    read_list,
    register_source,
)
from data import sources as table
from data.toy import draw_video

BEST = "resnet_rgb_model_best.pth.tar"
# A user's file, which is outside the project.
ADDED = """
import numpy as np
from PIL import Image

from data import DataError, FrameSource, register_source


class Stacks(FrameSource):
    '''root/<path>.npy holds all frames of a video: uint8 (T, H, W, 3).'''

    def __init__(self, root):
        self.root = root

    def length(self, video):
        return len(self.open(video))

    def decode(self, video, numbers):
        stack = self.open(video)
        for number in numbers:
            yield f"frame {number}", Image.fromarray(stack[number - 1])

    def open(self, video):
        try:
            return np.load(f"{self.root}/{video.path}.npy", mmap_mode="r")
        except OSError as error:
            raise DataError(f"no stack {video.path} ({error.strerror})") from None


register_source("stacks", lambda config: Stacks(config.root))
"""


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """Register the user's source for one test."""
    monkeypatch.setattr(table, "_KINDS", dict(table._KINDS))
    (tmp_path / "stacks.py").write_text(ADDED)
    spec = importlib.util.spec_from_file_location("stacks", tmp_path / "stacks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(folder: Path) -> dict[str, np.ndarray]:
    """Videos (T, H, W, 3) of two classes by their paths, and their lists."""
    videos = {}
    for split in ("train", "val"):
        lines = []
        for i in range(8):
            path, frames = f"{split}/{i}", draw_video(NAMES[i % 2], np.random.default_rng((split == "val", i)))
            videos[path] = np.stack(frames)
            lines.append(f"{path} {len(frames)} {i % 2}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return videos


def dataset(folder: Path, name: str, **settings: object) -> str:
    """The YAML file of a dataset with these lists. Its root is the folder of the same name."""
    values = {"name": "own", "num_classes": 2, "root": name, "train_list": "train.txt", "val_list": "val.txt"}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values | {"categories": NAMES} | settings))
    return f"{name}.yaml"


def save_as_images(folder: Path, videos: dict[str, np.ndarray]) -> None:
    for path, frames in videos.items():
        (folder / path).mkdir(parents=True)
        for number, frame in enumerate(frames, start=1):
            Image.fromarray(frame).save(folder / path / f"{number}.png")


def train_and_test(folder: Path, file: str, **flags: object) -> tuple[dict, np.ndarray]:
    """The weights after two epochs, and the scores of the best checkpoint."""
    run = Path(file).stem
    result = run_inside("main.py", file, "tsm_tiny", "--run", run, *quick_flags(**flags), cwd=folder)
    assert result.returncode == 0 and "finished: 2 epochs" in result.stdout, result.stdout
    weights = ["--weights", f"net_runs/{run}/{BEST}", "--device", "cpu", "--views", "3x2", "--crop", 40]
    result = run_inside("test_models.py", file, *weights, "--workers", 1, "--scores", f"{run}.npz", cwd=folder)
    assert result.returncode == 0 and "own, 8 videos, tsm_tiny" in result.stdout, result.stdout
    content = torch.load(folder / f"net_runs/{run}/resnet_rgb_epoch_2_checkpoint.pth.tar", weights_only=True)
    return content["state_dict"], np.load(folder / f"{run}.npz")["scores"]


def check_equal(ours: tuple[dict, np.ndarray], expected: tuple[dict, np.ndarray]) -> None:
    """The same frames give bit-equal weights and scores."""
    assert ours[0].keys() == expected[0].keys() and all(torch.equal(ours[0][key], expected[0][key]) for key in ours[0])
    np.testing.assert_array_equal(ours[1], expected[1])
    assert len(np.unique(ours[1])) > 8


def test_a_source_from_outside_trains_and_tests(tmp_path, registered):
    videos = drawn(tmp_path)
    save_as_images(tmp_path / "images", videos)
    for path, frames in videos.items():
        (tmp_path / "stacks" / path).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "stacks" / f"{path}.npy", frames)
    images = train_and_test(tmp_path, dataset(tmp_path, "images", image_tmpl="{}.png"))
    for split in ("train", "val"):  # the source knows the lengths better than the list
        lines = [line.split() for line in (tmp_path / f"{split}.txt").read_text().splitlines()]
        (tmp_path / f"{split}.txt").write_text("".join(f"{path} 1 {label}\n" for path, _, label in lines))
    file = dataset(tmp_path, "stacks", source="stacks")
    check_equal(train_and_test(tmp_path, file, workers=1), images)
    assert "modality: RGB, one frame a segment (Stacks), 3 channels" in (tmp_path / "logs/stacks.log").read_text()
    (tmp_path / "stacks/train/0.npy").unlink()
    result = run_inside("main.py", file, "tsm_tiny", "--run", "again", *quick_flags(), cwd=tmp_path)
    assert result.returncode == 1 and "error: train.txt:1: no stack train/0 (No such file" in result.stdout, (
        result.stdout
    )


def test_a_sources_mistake_is_no_bad_video(tmp_path, registered, monkeypatch):
    drawn(tmp_path)
    config = load_dataset_config(str(tmp_path / dataset(tmp_path, "stacks", source="stacks")))
    data = EvalDataset(read_list(config.val_list, 2), config.open_source(), 4, None, 40, 40, "spread")
    assert isinstance(data[0], DataError)  # the file does not exist
    for frames, error in (
        (np.zeros((9, 48, 48), np.uint8), "must give uint8"),
        (np.zeros((0, 48, 48, 3), np.uint8), "index"),
    ):
        monkeypatch.setattr(registered.Stacks, "open", lambda self, video, frames=frames: frames)
        with pytest.raises((TypeError, IndexError), match=error):
            data[0]


def test_kinds_of_source(tmp_path, registered):
    drawn(tmp_path)
    for source, message in [
        ("vidoe", "unknown source 'vidoe'; did you mean video?"),
        ("stack", "unknown source 'stack'; did you mean stacks?"),
        ("?", r"unknown source '\?'; known: folder, video, packed, stacks"),
        (3, "source is 3, not str"),
        ("folder", "lacks the key 'image_tmpl'"),
    ]:
        with pytest.raises(DataError, match=rf"own.yaml: {message}"):
            load_dataset_config(str(tmp_path / dataset(tmp_path, "own", source=source)))
    config = load_dataset_config(str(tmp_path / dataset(tmp_path, "own")), image_tmpl="{}.png", root="/elsewhere")
    source = config.open_source()
    assert isinstance(source, FrameFolder) and (str(source.root), source.image_tmpl) == ("/elsewhere", "{}.png")
    config = load_dataset_config(str(tmp_path / dataset(tmp_path, "own", source="video")))
    assert isinstance(config.open_source(), VideoFile) and config.open_source().root == tmp_path / "own"
    with pytest.raises(ValueError, match="a source 'folder' is registered already"):
        register_source("folder", VideoFile)


def save_as_films(folder: Path, videos: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Write an mp4 file for each video; returns the decoded frames, which lossy coding has changed."""
    av, decoded = pytest.importorskip("av"), {}
    for path, frames in videos.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(file), "w", format="mp4") as container:
            stream = container.add_stream("mpeg4", rate=12)
            stream.height, stream.width = frames.shape[1:3]
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        with av.open(str(file)) as container:
            decoded[path] = np.stack([np.asarray(frame.to_image()) for frame in container.decode(video=0)])
        assert len(decoded[path]) == len(frames) and not np.array_equal(decoded[path], frames)
    return decoded


def test_video_files_train_and_test_like_images_of_their_frames(tmp_path):
    save_as_images(tmp_path / "images", save_as_films(tmp_path / "films", drawn(tmp_path)))
    films = train_and_test(tmp_path, dataset(tmp_path, "films", source="video"), workers=2)
    check_equal(films, train_and_test(tmp_path, dataset(tmp_path, "images", image_tmpl="{}.png")))
    assert "modality: RGB, one frame a segment (video files), 3 channels" in (tmp_path / "logs/films.log").read_text()
    flow = ["--modality", "Flow", *quick_flags()]
    result = run_inside("main.py", "films.yaml", "tsm_tiny", "--run", "flow", *flow, cwd=tmp_path)
    line = "error: modality Flow reads optical flow, which this source (video files) does not hold; choose modality RGB"
    assert result.returncode == 1 and result.stdout.splitlines()[-1].startswith(line), result.stdout


def test_frames_of_a_video_file_are_those_of_its_numbers(tmp_path):
    (path, frames), *_ = save_as_films(tmp_path, dict([*drawn(tmp_path).items()][:1])).items()
    video, source = Video(path, len(frames), 0, "list.txt:7"), VideoFile(tmp_path)
    numbers = [9, 1, len(frames), 9, 2]
    np.testing.assert_array_equal(np.stack(source.frames(video, numbers)), frames[[n - 1 for n in numbers]])


def test_unreadable_video_files_are_errors_in_one_line(tmp_path, monkeypatch):
    (path, frames), *_ = save_as_films(tmp_path, dict([*drawn(tmp_path).items()][:1])).items()
    (tmp_path / "text").write_text("no video")
    n = len(frames)
    for name, length, message in [
        ("gone", n, f"no file {tmp_path}/gone; check the dataset's root and the list's paths"),
        ("x" * 300, n, f"no file {tmp_path}/xxx"),
        ("text", n, f"{tmp_path}/text: cannot be decoded ("),
        (
            path,
            n + 9,
            f"{tmp_path}/{path} ends before frame {n + 1}, but the list says {n + 9} frames; correct the list",
        ),
    ]:
        video = Video(name, length, 0, "list.txt:7")
        error = EvalDataset([video], VideoFile(tmp_path), length, None, 40, 40, "spread")[0]
        assert isinstance(error, DataError) and "\n" not in str(error)
        assert str(error).startswith(f"list.txt:7: {message}"), error
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match="^reading a file needs PyAV; pip install av"):
        EvalDataset([], VideoFile(tmp_path), 4, None, 40, 40, "spread")


def test_a_run_from_before_there_were_sources_goes_on(tmp_path):
    save_as_images(tmp_path / "images", drawn(tmp_path))
    file = dataset(tmp_path, "images", image_tmpl="{}.png")
    command = ["main.py", file, "tsn_tiny", "--run", "old", "--resume", "auto"]
    assert run_inside(*command, *quick_flags(epochs=1), cwd=tmp_path).returncode == 0
    (checkpoint,) = (tmp_path / "net_runs/old").glob("*_epoch_1_*")
    content = torch.load(checkpoint, weights_only=True)
    assert content["config"]["dataset"].pop("source") == "folder"
    torch.save(content, checkpoint)
    result = run_inside(*command, *quick_flags(epochs=2), cwd=tmp_path)
    assert result.returncode == 0 and ": 1 epochs done" in result.stdout, result.stdout
    assert [
        line.partition("since that checkpoint: ")[2] for line in result.stdout.splitlines() if "changed" in line
    ] == ["epochs: 1 -> 2"]
