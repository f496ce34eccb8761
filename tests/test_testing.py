"""test_models.py: protocols, ensembles, frame orders, bad videos, one video."""

import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from score_files import run_test
from toy_run import NAMES, make_dataset, quick_flags, run_inside

from data import EvalDataset, load_dataset_config, open_one_video, read_list
from data.sampling import FrameOrder
from data.transforms import normalise
from engine.config import ConfigError, load_recipe
from engine.testing import average, choose_views
from models import build_model, load_weights
from models.weights import released_segments

BEST = "resnet_rgb_model_best.pth.tar"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a dataset and two runs of one epoch, tsm_tiny and tsn_tiny."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = make_dataset(folder)
    for model in ("tsm_tiny", "tsn_tiny"):
        result = run_inside("main.py", dataset, model, "--run", model, *quick_flags(epochs=1), cwd=folder)
        assert result.returncode == 0, result.stdout
    return folder, dataset


def score(trained, *flags: object, weights: str = f"net_runs/tsm_tiny/{BEST}", processes: int = 1) -> tuple[str, dict]:
    return run_test(*trained, weights, *flags, processes=processes)


def test_protocols_are_those_of_the_released_code():
    rsa, sda = load_recipe("rsanet_r50", "something_v1"), load_recipe("sda_tsm_r50", "something_v1")
    views = choose_views(sda, "rsa")
    assert (views.crops, views.clips, views.resize, views.crop, views.input) == (1, 1, (240, 320), 224, 224)
    assert views.short_videos == "first_frame" and choose_views(rsa, None) == views
    full = choose_views(rsa, "sda_full", views="3x2")
    assert (full.crops, full.clips, full.resize, full.crop, full.input) == (3, 2, 256, 256, 224)
    assert full.short_videos == "spread" and choose_views(sda, None, views="3x2") == full
    assert choose_views(rsa, "sda").crop == 224 and choose_views(rsa, "sda", crop=200).crop == 200
    with pytest.raises(ConfigError, match="unknown protocol 'sda_ful'; did you mean sda_full"):
        choose_views(rsa, "sda_ful")


def test_the_file_says_how_it_was_made(trained):
    output, file = score(trained)
    assert {"scores", "labels", "paths", "members", "member_names", "average", "protocol", "categories"} == set(file)
    assert file["categories"].tolist() == NAMES and str(file["average"]) == "logits"
    assert str(file["protocol"]) == "tsm_tiny (resize as stored, crop 48, spread): 4x1x1 @48"
    assert str(file["protocol"]) in output and file["members"].shape == (1, 8, 2)


def test_ensembles(trained):
    both = f"net_runs/tsm_tiny/{BEST},net_runs/tsn_tiny/{BEST}"
    output, file = score(trained, "--num_segments", "4,8", weights=both)
    assert ": (4+8)x1x1 @48, Top-1 " in output and "mean logits weighted equally" in output
    first, second = file["members"]
    alone = score(trained)[1]["scores"]
    np.testing.assert_array_equal(first, alone)
    np.testing.assert_allclose(file["scores"], (first + second) / 2, rtol=1e-6)
    assert [name.split()[:2] for name in file["member_names"]] == [["tsm_tiny", "4"], ["tsn_tiny", "8"]]
    weighted = score(trained, "--num_segments", "4,8", "--member_weights", "3,1", weights=both)
    np.testing.assert_allclose(weighted[1]["scores"], 0.75 * first + 0.25 * second, rtol=1e-5)
    assert "mean logits weighted 3,1" in weighted[0]
    soft = score(trained, "--num_segments", "4,8", "--average", "softmax", weights=both)[1]
    probabilities = [np.exp(m) / np.exp(m).sum(1, keepdims=True) for m in (first, second)]
    np.testing.assert_allclose(soft["scores"], sum(probabilities) / 2, rtol=1e-5)
    assert str(soft["average"]) == "softmax"


def test_average_is_not_an_average_of_ranks():
    a, b = np.array([[4.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    assert average([a, b], [1, 1], "logits").argmax() == 0 and average([a, b], [0, 1], "logits").argmax() == 1


@pytest.mark.parametrize("weights", ["1", "1,-1", "0,0", "1,x", "inf,1"])
def test_member_weights_are_checked(trained, weights):
    folder, dataset = trained
    both = f"net_runs/tsm_tiny/{BEST},net_runs/tsn_tiny/{BEST}"
    flags = ["--weights", both, "--member_weights", weights, "--device", "cpu"]
    result = run_inside("test_models.py", dataset, *flags, cwd=folder)
    assert result.returncode == 1 and f"error: --member_weights {weights} must be 2 numbers" in result.stdout


def test_frame_orders():
    clip = [3, 9, 15, 21]
    assert FrameOrder("as it is")(clip, 0) == clip and FrameOrder("reverse")(clip, 0) == [21, 15, 9, 3]
    assert FrameOrder("repeat", 2)(clip, 0) == [9] * 4
    shuffled = [FrameOrder("shuffle")(clip, seed) for seed in range(20)]
    assert all(sorted(order) == clip for order in shuffled) and len({tuple(order) for order in shuffled}) > 5
    assert FrameOrder("shuffle")(clip, 3) == shuffled[3]
    with pytest.raises(ValueError, match="frame 5 is not one of the 4 frames"):
        FrameOrder("repeat", 5)(clip, 0)


@pytest.mark.parametrize(
    ("flags", "order"),
    [
        (["--reverse_frames"], lambda clip, i: clip[::-1]),
        (["--shuffle_frames"], lambda clip, i: np.random.default_rng(i).permutation(clip).tolist()),
        (["--repeat_frame", 3], lambda clip, i: [clip[2]] * 4),
    ],
)
def test_orders_reach_the_network(trained, flags, order):
    folder, dataset = trained
    output, file = score(trained, *flags)
    assert re.search(r"4x1x1 @48 \((frames )?(reversed|shuffled|frame 3 repeated)\), Top-1 ", output)
    config = load_dataset_config(str(dataset))
    views = {"resize": None, "crop_size": 48, "input_size": 48, "short_videos": "spread"}
    usual = EvalDataset(read_list(config.val_list, 2), config.open_source(), 4, **views)
    model = build_model("tsm_tiny", 2, 4).eval()
    load_weights(model, folder / "net_runs" / "tsm_tiny" / BEST)
    for i in range(len(usual)):
        with torch.no_grad():
            logits = model(normalise(usual[i][0][:, order([0, 1, 2, 3], i)]))
        np.testing.assert_allclose(file["scores"][i], logits[0], rtol=1e-4, atol=1e-5)


def test_a_network_without_time_does_not_feel_the_order(trained):
    """TSN has exactly the same accuracy for any order of the same frames."""
    output, file = score(trained, "--order_table", weights=f"net_runs/tsn_tiny/{BEST}")
    rows = re.findall(r": (as it is|reversed|shuffled|frame 2 repeated) +(\S+) +(\S+) +(\S+ %|-)", output)
    assert [row[0] for row in rows] == ["as it is", "reversed", "shuffled", "frame 2 repeated"]
    assert rows[0][1] == rows[1][1] == rows[2][1] and rows[0][3] == rows[1][3] == "0.0 %"
    folder = trained[0]
    for name in ("reverse", "shuffle", "repeat"):
        other = np.load(folder / f"tested_{name}.npz")["scores"]
        assert np.allclose(other, file["scores"], rtol=1e-4, atol=1e-5) == (name != "repeat")


def test_orders_exclude_each_other(trained):
    folder, dataset = trained
    flags = ["--weights", f"net_runs/tsm_tiny/{BEST}", "--device", "cpu", "--workers", 0]
    result = run_inside("test_models.py", dataset, *flags, "--reverse_frames", "--shuffle_frames", cwd=folder)
    assert result.returncode == 1 and "give one of --shuffle_frames" in result.stdout
    result = run_inside("test_models.py", dataset, *flags, "--repeat_frame", 9, cwd=folder)
    assert result.returncode == 1 and "error: --repeat_frame 9 is not one of the 4 frames of a clip" in result.stdout


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_videos_are_left_out_if_asked_and_said(trained, tmp_path, processes):
    folder, dataset = trained
    lines = (folder / "val.txt").read_text().splitlines()
    lines[1] = "val/gone 24 1"
    lines[6] = lines[6].rsplit(maxsplit=2)[0] + " 999 0"
    (folder / "bad.txt").write_text("\n".join(lines))
    whole = score(trained)[1]
    flags = ["--list", "bad.txt", "--on_bad_video", "skip", "--batch_size", 1]
    output, file = score(trained, *flags, processes=processes)
    good = [0, 2, 3, 4, 5, 7]
    np.testing.assert_allclose(file["scores"], whole["scores"][good], rtol=1e-4, atol=1e-6)
    assert file["paths"].tolist() == whole["paths"][good].tolist() and len(file["labels"]) == 6
    assert output.count("left out: ") == 2 and "left out: val/gone: bad.txt:2: no folder" in output
    assert re.search(r"small, 6 videos, WITHOUT 2 bad videos, listed above, .*Top-1 \d", output), output
    command = ["test_models.py", dataset, "--weights", f"net_runs/tsm_tiny/{BEST}", "--device", "cpu"]
    stopped = run_inside(*command, "--list", "bad.txt", cwd=folder)
    assert stopped.returncode == 1 and "error: bad.txt:2: no folder" in stopped.stdout
    (folder / "none.txt").write_text("val/gone 24 1\n")
    result = run_inside(*command, "--list", "none.txt", "--on_bad_video", "skip", cwd=folder)
    assert result.returncode == 1 and "none of the 1 videos can be read; the first: none.txt:1" in result.stdout


def video_result(folder, *flags: object):
    command = ["test_models.py", "--weights", f"net_runs/tsm_tiny/{BEST}", "--device", "cpu", *flags]
    return run_inside(*command, cwd=folder)


def test_one_video_as_a_folder(trained):
    """The probabilities come from the test's scores, and the names from the checkpoint."""
    folder, _ = trained
    scores = torch.from_numpy(score(trained, "--views", "1x2")[1]["scores"])
    result = video_result(folder, "--video", folder / "frames" / "val" / "video 3", "--views", "1x2")
    assert result.returncode == 0, result.stdout
    shown = re.findall(r": +(\d+\.\d\d) %  (.*)", result.stdout)
    probability, label = scores[3].softmax(0).sort(descending=True)
    assert [name for _, name in shown] == [NAMES[k] for k in label.tolist()]
    assert [float(p) for p, _ in shown] == pytest.approx((100 * probability).tolist(), abs=0.02)
    assert "4x1x2 @48" in result.stdout


def test_one_video_as_a_file(trained, tmp_path):
    av = pytest.importorskip("av")
    file = tmp_path / "clip.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width = stream.height = 48
        for k in range(20):
            image = np.full((48, 48, 3), 10 * k, np.uint8) + rng.integers(0, 5, (48, 48, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    video, source, notes = open_one_video(file)
    frames = source.frames(video, [1, 20, 7, 7])
    assert (video.num_frames, source.size, notes) == (20, (48, 48), [])
    assert [round(np.asarray(frame).mean() / 10) for frame in frames] == [0, 19, 6, 6]
    result = video_result(trained[0], "--video", file)
    assert result.returncode == 0 and "clip.mp4: 20 frames, 4x1x1 @48" in result.stdout, result.stdout
    assert len(re.findall(r"\d+\.\d\d %  Moving something", result.stdout)) == 2


def test_what_is_wrong_with_one_video_is_said_once_in_one_line(trained, tmp_path):
    names = [f"{k}.png" for k in (1, 2, 3, 4, 8, 9, 10, 11)]
    for name in names:
        Image.new("RGB", (48, 48), "white").save(tmp_path / name)
    result = video_result(trained[0], "--video", tmp_path)
    assert result.returncode == 0 and f"--video {tmp_path}: frames 5 to 7 are missing\n" in result.stdout, result.stdout
    for name in names[2:]:
        Image.new("RGB", (60, 48), "white").save(tmp_path / name)
    result = video_result(trained[0], "--video", tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stdout
    assert f"error: --video {tmp_path}: 1.png is 48x48 px, 4.png is 60x48 px (width x height)" in result.stdout


def test_one_video_errors(trained, tmp_path, monkeypatch):
    folder, dataset = trained
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    cases = {"empty": "the folder holds no .jpg", "nowhere": "no such file or", "text.mp4": "cannot be decoded"}
    for name, message in cases.items():
        result = video_result(folder, "--video", tmp_path / name)
        assert result.returncode == 1 and "Traceback" not in result.stdout, result.stdout
        assert re.search(rf"error: --video .*{name}: .*{message}", result.stdout), result.stdout
    monkeypatch.setitem(sys.modules, "av", None)
    result = video_result(folder, "--video", tmp_path / "text.mp4")
    assert result.returncode == 1 and "reading a file needs PyAV; pip install av" in result.stdout
    result = run_inside("test_models.py", dataset, "--weights", "w", "--video", "v", cwd=folder)
    assert result.returncode == 2 and "give either a dataset or --video" in result.stdout


def test_what_the_name_of_a_tsm_release_tells():
    name = "models/TSM_something_RGB_resnet50_shift8_blockres_avg_segment16_e45.pth"
    assert released_segments(name) == 16 and released_segments("my_segments.pth") is None
