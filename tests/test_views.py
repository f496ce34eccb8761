"""Views of a test: mirrored crops, their names in the result line, several files, and early errors."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from score_files import train_for_tests
from toy_run import quick_flags, run_inside

from data import EvalDataset, FrameFolder, Video, transforms
from engine import loading
from engine.config import ConfigError
from engine.evaluate import score
from engine.precision import Precision

FP32 = Precision("fp32", torch.device("cpu"))
BEST = "resnet_rgb_model_best.pth.tar"


def brightness(clips):
    """A network of two classes, "bright on the left" and "bright on the right": (N,T,C,H,W) -> (N,2)."""
    left, right = clips.mean((1, 2, 3)).chunk(2, dim=-1)
    return torch.stack([left.mean(-1), right.mean(-1)], 1)


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("pairs", [{0: 1, 1: 0}, {}])
def test_mirrored_crops_exchange_the_scores_of_paired_classes(tmp_path, pairs, clips):
    folder = tmp_path / "video"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(1, 9):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    videos = [Video("video", 8, 0, "list.txt:1")]

    def scores(crops):
        views = {"resize": None, "crop_size": 32, "input_size": 32, "short_videos": "spread"}
        data = EvalDataset(
            videos, FrameFolder(tmp_path, "{}.png"), 2, **views, num_crops=crops, num_clips=clips, mirror_pairs=pairs
        )
        assert data.mirrored_views == (5 * clips if crops == 10 else 0)
        return score(brightness, data[0][0][None], data, 3, FP32)[0]

    five, ten = scores(5), scores(10)
    assert abs(five[0] - five[1]) > 0.01
    expected = five if pairs else np.full(2, five.mean())
    np.testing.assert_allclose(ten, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, _ = train_for_tests(tmp_path_factory.mktemp("trained"))
    (folder / "a,b.pth").write_bytes((folder / "net_runs/run" / BEST).read_bytes())
    return folder


def accuracy_of(folder, *flags, weights=("a,b.pth",), returncode=0):
    words = [word for file in weights for word in ("--weights", file)]
    command = ["test_models.py", "small.yaml", *words, "--device", "cpu", "--workers", 0, *flags]
    result = run_inside(*command, cwd=folder)
    assert result.returncode == returncode and "Traceback" not in result.stdout, result.stdout
    return result.stdout


def test_the_protocol_says_what_was_done_to_mirrored_scores(trained):
    ten = ["--views", "10x1", "--crop", 40]
    swapped = accuracy_of(trained, *ten, "--scores", "swapped.npz")
    kept = accuracy_of(trained, *ten, "--mirrored_scores", "keep", "--scores", "kept.npz")
    assert ": 4x10x1 @48 (mirrored scores swapped), Top-1 " in swapped
    assert ": 4x10x1 @48 (mirrored scores kept), Top-1 " in kept
    assert "mirrored" not in accuracy_of(trained, "--views", "5x1", "--crop", 40)
    a, b = (np.load(trained / f"{name}.npz") for name in ("swapped", "kept"))
    assert str(a["protocol"]).endswith("(mirrored scores swapped)") and np.abs(a["scores"] - b["scores"]).max() > 1e-4
    lines = [line for line in (trained / "small.yaml").read_text().splitlines() if not line.startswith(("categ", "-"))]
    (trained / "nameless.yaml").write_text("\n".join(lines))
    content = torch.load(trained / "a,b.pth", weights_only=True)
    torch.save({key: content[key] for key in ("state_dict", "arch")}, trained / "bare.pth")
    flags = ["--weights", "bare.pth", "--num_segments", 4, "--device", "cpu", "--workers", 0]
    result = run_inside("test_models.py", "nameless.yaml", *flags, *ten, cwd=trained)
    assert "(mirrored scores kept), Top-1 " in result.stdout, result.stdout  # without class names there are no pairs


@pytest.mark.parametrize(
    "weights",
    [("a,b.pth", f"net_runs/run/{BEST}"), (f'"a,b.pth",net_runs/run/{BEST}',), ("a,b.pth", "a,b.pth")],
)
def test_file_names_may_hold_commas(trained, weights):
    output = accuracy_of(trained, weights=weights)
    assert "(4+4)x1x1 @48, Top-1 " in output and output.count("tensors loaded") == 2


@pytest.mark.parametrize("place", ["/proc/no/s.npz", "frames"])
def test_scores_that_cannot_be_written_are_found_before_the_test(trained, place):
    output = accuracy_of(trained, "--scores", place, returncode=1)
    assert f"error: --scores {place}: cannot be written" in output and "Val: " not in output


def test_two_labels_of_a_video_must_be_allowed(trained):
    lines = (trained / "val.txt").read_text().splitlines()
    (trained / "two.txt").write_text("\n".join([*lines, lines[0][:-1] + "1"]))
    assert "allow it with --allow_two_labels" in accuracy_of(trained, "--list", "two.txt", returncode=1)
    assert "small, 9 videos" in accuracy_of(trained, "--list", "two.txt", "--allow_two_labels")


def test_a_large_video_is_not_seen_through_a_keyhole(trained):
    for number in range(1, 9):
        folder = trained / "large"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (160, 120), (20 * number,) * 3).save(folder / f"{number}.png")
    video = ["test_models.py", "--video", "large", "--weights", f"net_runs/run/{BEST}", "--device", "cpu"]
    result = run_inside(*video, cwd=trained)
    assert result.returncode == 1 and "would see a crop of 48 only; add --resize 48" in result.stdout, result.stdout
    assert "its frames are 120x160" in result.stdout
    result = run_inside(*video, "--resize", 48, cwd=trained)
    assert re.search(
        r": 8 frames, 4x1x1 @48 \(frames of 120x160, resize 48, crop 48, spread, input 48\)", result.stdout
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_a_bug_is_a_traceback_and_no_bad_video(trained, monkeypatch, error, workers):
    def broken(*_, **__):
        raise error("a bug")

    monkeypatch.setattr(transforms, "resized_size", broken)
    monkeypatch.setattr(loading, "check_clips", lambda *_: None)
    skip = ["--on_bad_video", "skip", "--device", "cpu", "--workers", workers]
    test = ["test_models.py", "small.yaml", "--weights", f"net_runs/run/{BEST}", *skip]
    train = ["main.py", "small.yaml", "tsn_tiny", "--run", f"bug{error.__name__}{workers}", *quick_flags(), *skip]
    for command in (test, train):
        result = run_inside(*command, cwd=trained)
        assert result.returncode == 1 and "Traceback" in result.stdout and "left out" not in result.stdout
        assert f"{error.__name__}: a bug" in result.stdout and "error: " not in result.stdout, result.stdout


def test_a_shared_memory_that_cannot_be_written_is_one_line():
    with pytest.raises(ConfigError, match=r"/proc cannot be written \(.*\), .* use --workers 0"):
        loading.check_shared_memory(1, 1, folder="/proc")


@pytest.mark.parametrize(("workers", "advice"), [(0, "raise --workers (0 now"), (7, "raise --workers (7 now"), (8, "")])
def test_advice_on_workers_follows_the_cores(monkeypatch, workers, advice):
    monkeypatch.setattr(loading, "processes_and_cores", lambda: (2, 16))
    text = loading.advise_on_waiting(workers)
    assert advice in text and ("--workers" in text) == bool(advice)
