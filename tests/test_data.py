"""From a list line to a clip: sampling and crops as in the released code, lists, labels, flips, pixels."""

import os

import numpy as np
import pytest
import torch
from golden_values import table
from PIL import Image

from data import (
    DataError,
    EvalDataset,
    FrameFolder,
    TrainDataset,
    collate,
    list_datasets,
    load_dataset_config,
    read_list,
    sampling,
    toy,
    transforms,
)
from data.labels import describe_flip, mirror_pairs, read_categories
from engine.workers import batches

TABLES = table("data_and_schedule.json")


@pytest.mark.parametrize(
    ("name", "clips", "short_videos"),
    [
        ("rsa_val", 1, "first_frame"),
        ("sda_val", 1, "first_frame"),
        ("sda_test", 1, "spread"),
        ("sda_test_twice", 2, "spread"),
        ("rsa_test_dense", 10, "first_frame"),
    ],
)
def test_sampling_tables(name, clips, short_videos):
    for t, rows in TABLES[name].items():
        for n, expected in rows.items():
            actual = sampling.test_clips(int(n), int(t), clips, short_videos)
            assert len(actual) == clips and sum(actual, []) == expected, (name, t, n)


def test_sampling_refuses():
    with pytest.raises(ValueError, match="3 clips"):
        sampling.test_clips(20, 8, 3, "spread")
    with pytest.raises(ValueError, match="short_videos='last'"):
        sampling.segment_centres(20, 8, "last")


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 23, 40])
def test_random_segments(n):
    """Each frame of a segment of n // T frames can be drawn, and no other frame. Short videos give frame 1."""
    rng, duration = np.random.default_rng(0), n // 8
    drawn = np.array([sampling.random_segments(n, 8, rng) for _ in range(400)])
    for segment in range(8):
        expected = {1} if duration == 0 else set(range(segment * duration + 1, (segment + 1) * duration + 1))
        assert set(drawn[:, segment]) == expected


@pytest.mark.parametrize("size", ["320x240", "427x240", "240x427", "455x256"])
def test_training_crops(size):
    width, height = map(int, size.split("x"))
    crops = {
        (w, h, x, y)
        for w, h in transforms.crop_sizes(width, height, 224)
        for x, y in transforms.crop_offsets(width, height, w, h)
    }
    assert sorted(crops) == sorted(map(tuple, TABLES["multi_scale_crop"][size]))


def test_a_training_crop_within_two_pixels_of_the_input_becomes_it():
    largest = [transforms.crop_sizes(300, side, 224)[0] for side in (222, 226, 227)]
    assert largest == [(224, 224), (224, 224), (227, 227)]


def test_drawn_crops_are_those_of_the_set():
    rng, possible = np.random.default_rng(1), set()
    for width, height in transforms.crop_sizes(120, 90, 56):
        possible |= {(x, y, width, height, False) for x, y in transforms.crop_offsets(120, 90, width, height)}
    drawn = {tuple(transforms.multi_scale_crop(120, 90, 56, rng)) for _ in range(2000)}
    assert drawn == possible and len(possible) > 100


def test_test_crops():
    def corners(num_crops, width=100):
        return [(crop.x, crop.y) for crop in transforms.test_crops(width, 60, num_crops, 40)]

    assert corners(1) == [(30, 10)]
    assert corners(3) == [(0, 10), (60, 10), (30, 10)]
    assert corners(5) == [(0, 0), (60, 0), (0, 20), (60, 20), (30, 10)]
    assert corners(10) == corners(5) * 2
    assert [crop.mirrored for crop in transforms.test_crops(100, 60, 10, 40)] == [False] * 5 + [True] * 5
    assert all(crop[2:4] == (40, 40) for crop in transforms.test_crops(100, 60, 10, 40))
    # 103 - 40 is odd. The centre crop rounds the half to even, but the grid of the other crops rounds down.
    assert corners(1, 103) == [(32, 10)] and corners(3, 103)[2] == (30, 10)
    with pytest.raises(DataError, match="crop of 64 does not fit into frames of 60x100"):
        transforms.test_crops(100, 60, 1, 64)


def test_resized_sizes():
    for size, expected in ((None, (100, 60)), (30, (50, 30)), ((24, 32), (32, 24)), (90, (150, 90))):
        assert transforms.resized_size(100, 60, size) == expected
    assert transforms.resized_size(427, 240, 256) == (455, 256)  # the long side rounds down
    assert transforms.resized_size(240, 427, 256) == (256, 455)


def test_flip_policies():
    pairs = {3: 4, 4: 3}

    def outcomes(policy, label):
        rng = np.random.default_rng(0)
        return {transforms.random_flip(label, policy, pairs, rng) for _ in range(200)}

    assert outcomes("none", 1) == {(False, 1)}
    assert outcomes("skip", 1) == outcomes("swap", 1) == {(False, 1), (True, 1)}
    assert outcomes("skip", 3) == {(False, 3)}
    assert outcomes("swap", 3) == {(False, 3), (True, 4)}
    assert outcomes("keep", 3) == {(False, 3), (True, 3)} and outcomes("keep", 1) == outcomes("swap", 1)


def test_normalise():
    clip = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (clip.numpy() / 255 - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(transforms.normalise(clip).numpy(), expected, atol=1e-6)
    assert clip.dtype == torch.uint8 and transforms.normalise(clip).dtype == torch.float32


def test_something_flip_pairs_come_from_names():
    expected = {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    for name in ("something_v1", "something_v2"):
        assert load_dataset_config(name).mirror_pairs == expected
    names = load_dataset_config("something_v1").categories
    shuffled = names[::-1]  # another order gives other numbers; MMAction2's SSv1 list has another order
    assert mirror_pairs(shuffled) == {173 - i: 173 - j for i, j in expected.items()}
    text = describe_flip("skip", names, mirror_pairs(names))
    assert "86 <-> 87 (Pulling something from left to right <-> Pulling something from right to left)" in text
    assert describe_flip("none", names, {}) == "flip: none"
    assert "keep; flipped, label kept: 86 <-> 87" in describe_flip("keep", names, mirror_pairs(names))
    assert "names no categories" in describe_flip("swap", None, {})


def test_categories_are_checked(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("a\nb\n")
    assert read_categories(file, 2) == ["a", "b"]
    with pytest.raises(DataError, match="names.txt: 2 names for num_classes 3"):
        read_categories(file, 3)
    with pytest.raises(DataError, match="'a' stands there twice"):
        read_categories(["a", "b", "a"], 3)


def test_list_lines(tmp_path):
    file = tmp_path / "train.txt"
    file.write_text("a folder/with spaces 12 3\n\n/absolute/b 7 0\n")
    videos = read_list(file, 4)
    assert [tuple(video)[:3] for video in videos] == [("a folder/with spaces", 12, 3), ("/absolute/b", 7, 0)]
    assert videos[1].where == f"{file}:3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 8 0\nb 8\n", r"list.txt:2: 'b 8' is not 'path #frames label'"),
        ("a 8 0\nb eight 1\n", r"list.txt:2: #frames 'eight' and label '1' must be whole numbers"),
        ("a 0 1\n", r"list.txt:1: 0 frames"),
        ("a 8 174\n", r"list.txt:1: label 174 is not below num_classes 174; is this list made for another dataset\?"),
        ("a 8 -1\n", r"list.txt:1: label -1 is negative"),
        ("\n", r"list.txt: holds no video"),
    ],
)
def test_bad_lists(tmp_path, text, message):
    file = tmp_path / "list.txt"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_list(file, 174)


def test_missing_list(tmp_path):
    with pytest.raises(DataError, match="no.txt: no such list file"):
        read_list(tmp_path / "no.txt", 2)


@pytest.fixture
def videos(tmp_path):
    """Two videos of 12 frames, 40 x 30 px, the second with spaces in its path."""
    for folder in ("a", "b c"):
        (tmp_path / folder).mkdir()
        for i in range(1, 13):
            Image.new("RGB", (40, 30), (20 * i, 0, 0)).save(tmp_path / folder / f"{i:05d}.jpg", quality=95)
    (tmp_path / "list.txt").write_text("a 12 0\nb c 12 1\n")
    return tmp_path, read_list(tmp_path / "list.txt", 2)


def eval_set(root, videos, **settings):
    settings = {"resize": None, "crop_size": 30, "input_size": 24, "short_videos": "spread"} | settings
    return EvalDataset(videos, FrameFolder(root, "{:05d}.jpg"), 4, **settings)


def test_eval_views_are_in_order(videos):
    root, listed = videos
    views, label, index = eval_set(root, listed, num_crops=3, num_clips=2)[1]
    assert views.shape == (6, 4, 3, 24, 24) and views.dtype == torch.uint8 and (label, index) == (1, 1)
    red = views[:, :, 0].float().mean((2, 3)) / 20  # about the frame's number
    centres, starts = [2, 5, 8, 11], [1, 4, 7, 10]
    assert red.round().tolist() == [centres, starts] * 3


def test_training_clips_depend_on_seed_epoch_and_item_only(videos):
    root, listed = videos
    data = TrainDataset(listed, FrameFolder(root, "{:05d}.jpg"), 4, (30, 40), 24, "swap", {}, seed=3)
    first = data[0, 1][0]
    assert first.shape == (4, 3, 24, 24) and torch.equal(first, data[0, 1][0])
    assert not torch.equal(first, data[1, 1][0])


def break_video(root, how):
    if how == "folder":
        (root / "b c").rename(root / "moved")
    elif how == "frame":
        (root / "b c" / "00011.jpg").unlink()
    elif how == "empty":
        for file in (root / "b c").iterdir():
            file.unlink()
    else:
        whole = (root / "b c" / "00011.jpg").read_bytes()
        (root / "b c" / "00011.jpg").write_bytes(whole[: len(whole) // 2] if how == "cut" else b"no image")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("folder", r"list.txt:2: no folder \S*b c"),
        ("frame", r"list.txt:2: no frame 00011.jpg in .*holds 11 files from 00001.jpg to 00012.jpg"),
        ("empty", r"list.txt:2: no frame 00002.jpg: folder .*b c is empty"),
        ("cut", r"list.txt:2: .*00011.jpg is not a readable image"),
        ("text", r"list.txt:2: .*00011.jpg is not a readable image"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_videos_are_errors_in_one_line(videos, how, message, workers):
    root, listed = videos
    break_video(root, how)
    loader = torch.utils.data.DataLoader(eval_set(root, listed), 2, num_workers=workers, collate_fn=collate)
    with pytest.raises(DataError, match=message) as error:
        list(batches(loader))
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_opened_is_an_error_in_one_line(videos, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    root, (video, _) = videos
    long = video._replace(path="x" * 300)  # longer than file names may be
    assert str(eval_set(root, [long])[0]).startswith(f"{root}/list.txt:1: no folder {root}/xxx")
    (root / "a" / "00011.jpg").unlink()
    monkeypatch.setattr(os, "listdir", refuse)
    expected = f"{root}/list.txt:1: no frame 00011.jpg: folder {root}/a cannot be read (Permission denied)"
    assert str(eval_set(root, [video])[0]) == expected


def test_dataset_files(tmp_path, monkeypatch):
    assert {"something_v1", "something_v2", "toy_something"} <= set(list_datasets())
    file = tmp_path / "own.yaml"
    lines = "name: own\nnum_classes: 2\nroot: frames\ntrain_list: t.txt\nval_list: /v.txt\nimage_tmpl: '{:05d}.jpg'\n"
    file.write_text(lines)
    config = load_dataset_config(str(file))
    assert config.root == str(tmp_path / "frames") and config.val_list == "/v.txt" and config.mirror_pairs == {}
    assert load_dataset_config(str(file), root="elsewhere").root == "elsewhere"
    monkeypatch.chdir(tmp_path)
    assert load_dataset_config("own.yaml").root == "frames"  # as seen from the working folder
    for text, message in [
        (lines + "image_tmp: x\n", "unknown key 'image_tmp'; did you mean image_tmpl"),
        (lines.replace("num_classes: 2\n", ""), "lacks the key 'num_classes'"),
        (lines.replace("num_classes: 2", "num_classes: two"), "num_classes is 'two', not int"),
        (lines.replace("{:05d}", "frame"), "must hold one frame number"),
        (lines + "categories: [a]\n", "1 names for num_classes 2"),
        (lines + "categories: [yes, no]\n", "categories must be a file name or a list of names in quotes"),
        (lines.replace("num_classes: 2", "num_classes: true"), "num_classes is True, not int"),
        ("[", "not a YAML file"),
        ("text", "must hold 'key: value' lines"),
    ]:
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            load_dataset_config(str(file))
    with pytest.raises(DataError, match="no dataset 'something_v3'; did you mean something_v"):
        load_dataset_config("something_v3")


def test_toy_classes_are_each_other_played_backwards():
    categories = load_dataset_config("toy_something", root="unused").categories
    assert sorted(categories) == categories and set(categories) == set(toy.MOTIONS)
    by_motion = {}
    for name, (motion, backwards) in toy.MOTIONS.items():
        frames = toy.draw_video(name, np.random.default_rng(7))
        assert len(frames) in toy.LENGTHS and all(n % 8 == 0 for n in toy.LENGTHS)
        by_motion.setdefault(motion, {})[backwards] = [frame.tobytes() for frame in frames]
    assert len(by_motion) == 6
    for pair in by_motion.values():
        assert pair[False] == pair[True][::-1] and len(set(pair[False])) > 8


def test_toy_motions_go_where_their_names_say():
    def path(name):
        """The centre (x, y) and the area of the object in each frame, from its difference to the background."""
        tracks = []
        for frame in toy.draw_video(name, np.random.default_rng(11)):
            pixels = np.asarray(frame, float)
            mask = abs(pixels - pixels[0, 0]).sum(2) > 60
            y, x = np.nonzero(mask)
            tracks.append((x.mean(), y.mean(), mask.sum()) if mask.any() else (0, 0, 0))
        return np.array(tracks)

    assert (np.diff(path("Moving something from left to right")[:, 0]) > 0).mean() > 0.9
    assert (np.diff(path("Moving something up")[:, 1]) < 0).mean() > 0.9
    areas = path("Moving something closer to the camera")[:, 2]
    assert areas[-1] > 4 * areas[0]
    assert path("Something appearing")[0, 2] == 0 < path("Something appearing")[-1, 2]
    # On screens y points down. A clockwise turn therefore raises atan2(y, x) of the far end, seen from the object's
    # centre.
    angles = []
    for frame in toy.draw_video("Turning something clockwise", np.random.default_rng(11)):
        pixels = np.asarray(frame, float)
        y, x = np.nonzero(abs(pixels - pixels[0, 0]).sum(2) > 60)
        x, y = x - x.mean(), y - y.mean()
        tip = (x**2 + y**2).argmax()
        angles.append(np.arctan2(y[tip], x[tip]))
    assert np.unwrap(angles)[-1] - angles[0] > 0.5 * np.pi


def test_toy_set_is_drawn_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "TRAIN_PER_CLASS", 1)
    monkeypatch.setattr(toy, "VAL_PER_CLASS", 1)
    names = list(toy.MOTIONS)
    toy.draw_once(tmp_path / "toy", names)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    for split in ("train", "val"):
        videos = read_list(tmp_path / "toy" / f"{split}.txt", 12)
        assert [video.label for video in videos] == list(range(12))
        for video in videos:
            assert len(list((tmp_path / "toy" / "frames" / video.path).iterdir())) == video.num_frames
    monkeypatch.setattr(toy, "draw_video", lambda *_: pytest.fail("drawn again"))
    toy.draw_once(tmp_path / "toy", names)

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(toy, "draw_video", broken)
    with pytest.raises(KeyboardInterrupt):
        toy.draw_once(tmp_path / "other", names)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
