"""The TensorBoard files of a run, read back: figures, pictures, hyper-parameters, and what a resumed run hides."""

import io
import math
import re
import struct
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from toy_run import make_dataset, quick_flags, run, run_inside

from data.modality import RGB, Modality
from engine.board import Board, clip_grid
from engine.config import load_recipe
from engine.log_reader import read_log
from engine.train import validate
from reports.accuracy import highest
from reports.pictures import NO_VIDEOS, SHADES, confusion_pixels
from reports.statistics import confusion_matrix

CLASSES = [f"Moving something {way}" for way in ("from left to right", "from right to left", "up", "down")]
CLASSES += ["Moving something closer to the camera", "Moving something away from the camera"]
TRAIN_STEP = {"loss", "top1", "top5", "lr", "clips_per_second", "clips_per_second_without_waiting"}
TRAIN = {"loss", "top1", "top5", "seconds", "clips_per_second", "clips_per_second_without_waiting", "percent_waiting"}
VAL = {"loss", "top1", "top5", "class_accuracy", "best_top1", "seconds"}


def events(folder: Path) -> list[Event]:
    """All events of a folder's files, in the order in which they were written."""
    found = []
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            found.append(Event.FromString(content[place + 12 : place + 12 + length]))
            place += 12 + length + 4
    return found


def shown(folder: Path) -> dict[str, list[tuple[int, float | np.ndarray]]]:
    """tag -> points (step, value or picture), by TensorBoard's rule: a start hides all earlier points from its step on.

    The rule is in ``EventAccumulator._CheckForRestartAndMaybePurge`` of the package tensorboard.
    """
    points = defaultdict(list)
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            for tag in points:
                points[tag] = [point for point in points[tag] if point[0] < event.step]
        for value in event.summary.value:
            if value.HasField("image"):
                picture = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
                points[value.tag].append((event.step, picture))
            elif not value.HasField("metadata"):
                points[value.tag].append((event.step, value.simple_value))
    return dict(points)


class EvalVideos:
    """A validation set that nobody reads."""

    def __init__(self, videos: list):
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)


def state(epoch: int, step: int = 0, best: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(epoch=epoch, step=step, best=best)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of six classes: two epochs of three steps, the second with a validation."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = make_dataset(folder, per_class=2, names=CLASSES)
    flags = quick_flags(print_every=1, eval_every=2)
    result = run_inside("main.py", dataset, "tsm_tiny", "--run", "r", *flags, cwd=folder)
    assert result.returncode == 0, result.stdout
    return folder


def test_the_figures_of_epochs_are_those_of_the_log(trained):
    points = shown(trained / "net_runs/r/tensorboard")
    assert set(points) == {"lr", "train/clips", "val/confusion"} | {f"train/{name}" for name in TRAIN} | {
        f"val/{name}" for name in VAL
    }
    rows = read_log(trained / "logs/r.log")
    for name in ("loss", "top1", "top5"):
        assert points[f"train/{name}"] == [(k + 1, pytest.approx(rows[k][name], abs=1e-3)) for k in (0, 1)]
        assert points[f"val/{name}"] == [(2, pytest.approx(rows[1][f"val_{name}"], abs=1e-3))]
    assert points["val/best_top1"] == points["val/top1"]
    assert [step for step, _ in points["lr"]] == [1, 2]
    assert points["lr"][1][1] == pytest.approx(rows[1]["lr"], abs=1e-5)


def test_the_figures_of_speed_fit_together(trained):
    points = shown(trained / "net_runs/r/tensorboard")
    for k in (0, 1):
        seconds, speed, unwaited, waiting = (
            points[f"train/{name}"][k][1]
            for name in ("seconds", "clips_per_second", "clips_per_second_without_waiting", "percent_waiting")
        )
        assert seconds * speed == pytest.approx(12, rel=1e-5)  # three steps of four clips
        assert unwaited * (1 - waiting / 100) == pytest.approx(speed, rel=1e-5) and 0 < waiting < 100


def test_the_figures_of_steps_are_those_of_the_log(trained):
    points = shown(trained / "net_runs/r/tensorboard/steps")
    assert set(points) == {f"train_step/{name}" for name in TRAIN_STEP}
    log = (trained / "logs/r.log").read_text()
    places = [333, 667, 1000, 1333, 1667, 2000]  # an epoch is 1000
    for name, form in (("loss", "Loss"), ("top1", "Prec@1"), ("clips_per_second_without_waiting", "Speed")):
        logged = [float(value) for value in re.findall(rf"Epoch: .*{form} (\S+) ", log)]
        assert points[f"train_step/{name}"] == [
            (place, pytest.approx(value, abs=1e-3)) for place, value in zip(places, logged, strict=True)
        ]
    seconds = [float(value) for value in re.findall(r"Epoch: .*Time (\S+) ", log)]
    assert [4 / value for _, value in points["train_step/clips_per_second"]] == pytest.approx(seconds, abs=1e-3)


def test_the_confusion_matrix_is_that_of_the_validated_weights(trained):
    best = "net_runs/r/resnet_rgb_model_best.pth.tar"
    testing = ["small.yaml", "--weights", best, "--device", "cpu", "--workers", 0, "--scores", "scores.npz"]
    result = run_inside("test_models.py", *testing, cwd=trained)
    assert result.returncode == 0, result.stdout
    with np.load(trained / "scores.npz") as file:
        confusion = confusion_matrix(file["labels"], highest(file["scores"], 1)[:, 0], 6)
    assert confusion.sum() == 12 and (confusion.sum(1) == 2).all()
    ((step, picture),) = shown(trained / "net_runs/r/tensorboard")["val/confusion"]
    assert step == 2 and np.array_equal(picture, confusion_pixels(confusion))


def test_the_confusion_matrix_of_known_scores(monkeypatch):
    """Four videos, of which the third cannot be read. Its scores are NaN, and it is not counted."""
    labels, predictions = [0, 1, 2, 1], [0, 2, 0, 1]
    scores = np.eye(3, dtype=np.float32)[predictions]
    scores[2] = np.nan
    monkeypatch.setattr("engine.train.evaluate", lambda *_, **__: (scores, {"top1": 200 / 3}, {2: "list.txt:3: gone"}))
    dataset = EvalVideos([SimpleNamespace(label=label) for label in labels])
    tested = SimpleNamespace(tested=torch.nn.Identity(), epoch=0, precision=None)
    figures, confusion = validate(dataset, tested, load_recipe("tsm_tiny", "toy_something"), 4, None, None)
    assert confusion.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert figures["top1"] == 200 / 3 and figures["seconds"] > 0


def test_pixels_of_a_confusion_matrix():
    """Three classes: one always right, one right for a quarter of its videos, one without videos."""
    confusion = np.array([[5, 0, 0], [3, 1, 0], [0, 0, 0]])
    picture = confusion_pixels(confusion, side=30)
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    assert (picture[[0, -1]] == NO_VIDEOS).all() and (picture[:, [0, -1]] == NO_VIDEOS).all()  # the frame
    cells = picture[1:-1, 1:-1].reshape(3, 10, 3, 10, 3)
    assert (cells == cells[:, :1, :, :1]).all()
    none, half, full = (list(shade) for shade in SHADES)
    cells = cells[:, 0, :, 0].tolist()
    assert cells[0] == [full, none, none] and cells[1][1:] == [half, none]  # the root of a quarter is a half
    part = 2 * (math.sqrt(0.75) - 0.5)
    assert cells[1][0] == [round(a + part * (b - a)) for a, b in zip(half, full, strict=True)]
    assert cells[2] == [list(NO_VIDEOS)] * 3
    assert confusion_pixels(np.eye(174, dtype=int)).shape == (698, 698, 3)
    assert confusion_pixels(np.eye(400, dtype=int)).shape == (1602, 1602, 3)


def test_the_sample_clips_are_the_first_batch(trained, monkeypatch, tmp_path):
    seen = []
    normalise = Modality.normalise
    monkeypatch.setattr(Modality, "normalise", lambda self, clips: seen.append(clips) or normalise(self, clips))
    command = ["main.py", trained / "small.yaml", "tsm_tiny", "--run", "again", *quick_flags(epochs=1)]
    monkeypatch.chdir(trained)
    result = run_inside(*command, cwd=trained)
    assert result.returncode == 0, result.stdout
    ((step, picture),) = shown(trained / "net_runs/again/tensorboard")["train/clips"]
    assert step == 0 and picture.shape == (4 * 48 + 3 * 2, 4 * 48 + 3 * 2, 3)
    for n in range(4):
        for t in range(4):
            part = picture[50 * n : 50 * n + 48, 50 * t : 50 * t + 48]
            assert np.array_equal(part, seen[0][n, t].permute(1, 2, 0).numpy())
    assert (picture[48:50] == 255).all() and (picture[:, 48:50] == 255).all()


def test_a_wide_grid_is_scaled_down():
    pictures = torch.randint(0, 256, (2, 16, 3, 224, 224), dtype=torch.uint8)
    grid = clip_grid(pictures)
    assert grid.shape == (3, 2 * 112 + 2, 16 * 112 + 15 * 2) and grid.dtype == torch.uint8
    mean = pictures[1, 3, :, :2, :2].float().mean((1, 2))
    assert (grid[:, 114, 3 * 114] - mean).abs().max() <= 0.5


def test_pictures_of_clips():
    clips = torch.randint(0, 256, (2, 3, 3, 5, 4), dtype=torch.uint8)
    assert torch.equal(RGB.pictures(RGB.normalise(clips)), clips)
    flow = Modality("Flow", 3)
    clips = torch.randint(0, 256, (2, 3, 6, 5, 4), dtype=torch.uint8)  # x, y, x, y, x, y
    pictures = flow.pictures(flow.normalise(clips))
    assert torch.equal(pictures[..., :2, :, :], clips[..., 2:4, :, :]) and (pictures[..., 2, :, :] == 128).all()
    differences = Modality("RGBDiff", 2)
    clips = torch.randint(0, 256, (2, 3, 9, 5, 4), dtype=torch.uint8)  # three frames
    pictures = differences.pictures(differences.normalise(clips))
    expected = (clips[..., 6:, :, :].float() - clips[..., 3:6, :, :] + 255) / 2
    assert pictures.shape == (2, 3, 3, 5, 4) and (pictures - expected).abs().max() <= 0.51


def hyper_parameters(folder: Path) -> dict[str, float | str | bool]:
    """The settings that the tab HPARAMS shows for a run."""
    for event in events(folder / "hparams"):
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                info = HParamsPluginData.FromString(value.metadata.plugin_data.content).session_start_info
                return {key: getattr(found, found.WhichOneof("kind")) for key, found in info.hparams.items()}
    raise AssertionError("there are no hyper-parameters")


def test_a_resumed_run_hides_what_it_does_again_and_replaces_the_hyper_parameters(tmp_path):
    dataset = make_dataset(tmp_path)
    command = ["main.py", dataset, "tsm_tiny", "--run", "r", "--resume", "auto"]
    assert run_inside(*command, *quick_flags(print_every=1), cwd=tmp_path).returncode == 0
    board = tmp_path / "net_runs/r/tensorboard"
    before = shown(board), shown(board / "steps")
    assert hyper_parameters(board)["epochs"] == 2 and shown(board / "hparams")["final/epoch"] == [(2, 2.0)]
    (tmp_path / "net_runs/r/resnet_rgb_epoch_2_checkpoint.pth.tar").unlink()
    assert run_inside(*command, *quick_flags(print_every=1, epochs=3), cwd=tmp_path).returncode == 0
    assert sum(value.tag == "lr" for event in events(board) for value in event.summary.value) == 4
    points, steps = shown(board), shown(board / "steps")
    assert [step for step, _ in points["lr"]] == [step for step, _ in points["val/top1"]] == [1, 2, 3]
    assert points["train/loss"][0] == before[0]["train/loss"][0]
    assert [step for step, _ in steps["train_step/loss"]] == [500, 1000, 1500, 2000, 2500, 3000]
    assert steps["train_step/loss"][:2] == before[1]["train_step/loss"][:2]
    settings = hyper_parameters(board)
    assert (settings["epochs"], settings["lr"], settings["model"], settings["dataset"]) == (
        3,
        0.05,
        "tsm_tiny",
        "small",
    )
    assert settings["nesterov"] is False and settings["ema_decay"] == "None"
    final = shown(board / "hparams")
    assert final["final/epoch"] == [(3, 3.0)] and final["final/top1"][0][1] == points["val/top1"][-1][1]
    assert final["final/best_top1"][0][1] == max(value for _, value in points["val/top1"])


def test_a_start_within_an_epoch_hides_only_later_steps(tmp_path):
    """The first process was killed after 7 of 8 steps, and its newest checkpoint is of step 4."""
    with Board(tmp_path, {}, state(1), 8) as board:
        for step in range(1, 8):
            board.write_step(state(1, step), 0.1, (float(step), 0.0, math.nan), 1.0, 2.0)
    with Board(tmp_path, {}, state(1, 4), 8) as board:
        for step in range(5, 9):
            board.write_step(state(1, step), 0.1, (10.0 * step, 0.0, math.nan), 1.0, 2.0)
    points = shown(tmp_path / "steps")
    assert points["train_step/loss"] == list(
        zip(range(1125, 2001, 125), [1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 70.0, 80.0], strict=True)
    )
    assert "train_step/top5" not in points  # it is nan


def test_the_board_draws_no_random_numbers(tmp_path):
    clips = torch.zeros(2, 4, 3, 8, 8)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with Board(tmp_path, {}, state(0), 8) as board:
        board.keep_clips(clips, RGB)
        board.write_step(state(0, 1), 0.1, (1.0, 0.0, 0.0), 1.0, 2.0)
        board.write(state(1), 0.1, {"loss": 1.0}, {}, None)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_two_processes_write_one_file(tmp_path):
    dataset = make_dataset(tmp_path)
    command = ["main.py", dataset, "tsm_tiny", "--run", "r", *quick_flags(epochs=1)]
    result = run(*command, cwd=tmp_path, processes=2)
    assert result.returncode == 0 and result.stdout.count("epoch 1/1, ") == 1, result.stdout
    board = tmp_path / "net_runs/r/tensorboard"
    for folder in (board, board / "steps", board / "hparams"):
        assert sum(path.is_file() for path in folder.iterdir()) == 1
    assert len(shown(board)["train/loss"]) == len(shown(board)["val/confusion"]) == 1
    assert hyper_parameters(board)["processes"] == 2


def test_a_full_disk_ends_the_run_with_one_line(tmp_path, monkeypatch):
    """tensorboardX's own writer would lose its thread, and the run would then wait for ever."""
    dataset = make_dataset(tmp_path)
    write, written = EventsWriter.write_event, []

    def refuse(self, event):
        written.append(event)
        if len(written) > 20:
            raise OSError(28, "No space left on device")
        return write(self, event)

    monkeypatch.setattr(EventsWriter, "write_event", refuse)
    result = run_inside("main.py", dataset, "tsm_tiny", "--run", "r", *quick_flags(print_every=1), cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stdout, result.stdout
    assert "error: net_runs/r/tensorboard: cannot be written ([Errno 28] No space left" in result.stdout
