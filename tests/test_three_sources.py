"""One checkpoint tested on the same videos from frame folders, packed frames and video files."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from packed_sets import pack, pixels, sources, videos_of
from toy_run import make_dataset, quick_flags, run_inside

pytest.importorskip("av")  # before the import below, which needs it

from benchmarks.video import write_video

BEST = "net_runs/toy/resnet_rgb_model_best.pth.tar"
X264 = {"crf": "1", "g": "12", "bf": "2", "preset": "veryfast"}


def encode_all(file: Path) -> Path:
    """An H.264 file for each frame folder of a dataset, and the dataset of these files."""
    (source,) = sources(file)
    lists = {}
    for split in ("train", "val"):
        lines = []
        for video in videos_of(file, split):
            film = file.parent / "films" / f"{video.path}.mp4"
            film.parent.mkdir(parents=True, exist_ok=True)
            frames = pixels(source.frames(video, list(range(1, video.num_frames + 1))))
            write_video(film, "libx264", frames, options=X264, pixels="yuvj444p")
            lines.append(f"{video.path}.mp4 {video.num_frames} {video.label}\n")
        lists[f"{split}_list"] = f"films_{split}.txt"
        (file.parent / f"films_{split}.txt").write_text("".join(lines))
    settings = yaml.safe_load(file.read_text()) | lists | {"root": "films", "source": "video"}
    del settings["image_tmpl"]
    films = file.parent / "films.yaml"
    films.write_text(yaml.safe_dump(settings))
    return films


def result_of(file: Path, cwd: Path) -> tuple[str, np.ndarray]:
    """The Top-1 line and the scores of all videos of a dataset, those of training too."""
    config = yaml.safe_load(file.read_text())
    every = "".join((file.parent / config[f"{split}_list"]).read_text() for split in ("train", "val"))
    (cwd / "all.txt").write_text(every)
    flags = ["--weights", BEST, "--list", "all.txt", "--device", "cpu", "--workers", 0, "--scores", "out.npz"]
    result = run_inside("test_models.py", file, *flags, cwd=cwd)
    assert result.returncode == 0, result.stdout
    (line,) = re.findall(r"small, .*Top-1.*", result.stdout)
    return line, np.load(cwd / "out.npz")["scores"]


def top1(line: str) -> float:
    return float(re.search(r"Top-1 (\d+\.\d\d)", line)[1])


def test_three_sources_give_the_same_top1(tmp_path):
    """The folder and its packed copy give the same line, digit for digit. Lossy video may change one video of 200."""
    file = make_dataset(tmp_path / "toy", per_class=50)
    flags = quick_flags(epochs=4, global_batch_size=10, lr=0.01)
    result = run_inside("main.py", file, "tsm_tiny", "--run", "toy", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    pack(file, "--workers", 2, cwd=tmp_path)
    folder, scores = result_of(file, tmp_path)
    packed, same = result_of(tmp_path / "packed/small.yaml", tmp_path)
    video, near = result_of(encode_all(file), tmp_path)
    assert packed == folder and folder.startswith("small, 200 videos, tsm_tiny")
    np.testing.assert_array_equal(same, scores)
    assert 60 < top1(folder) < 99  # neither chance nor all right
    assert abs(top1(video) - top1(folder)) <= 0.5
    assert not np.array_equal(near, scores)  # the pixels are not the same
    assert np.abs(near - scores).mean() < 0.1 * scores.std()
