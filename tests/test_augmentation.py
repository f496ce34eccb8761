"""Crops and colours of training clips: TPN's random crop and colours, RubiksNet's two crops."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from toy_run import make_dataset, quick_flags, run_inside

from data import FrameFolder, TrainDataset, Video, collate, colour, load_dataset_config, transforms
from data.clip_rules import CLIP_RULES, ClipSettings, training_frames
from data.modality import Modality
from data.pixels import PIXELS, cut
from engine.batch import plan_batch
from engine.config import load_recipe
from engine.loading import clip_bytes, make_loader, training_data

WIDTH, HEIGHT = 60, 44


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for i in range(3):
        (folder / str(i)).mkdir()
        for number in range(1, 10):
            frame = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(frame).save(folder / str(i) / f"{number}.png")
    return FrameFolder(folder, "{}.png"), [Video(str(i), 9, i, f"list.txt:{i}") for i in range(3)]


def train_set(videos, num_segments=4, **settings):
    source, listed = videos
    settings = {"resize": None, "input_size": 32, "flip": "none", "mirror_pairs": {}} | settings
    return TrainDataset(listed, source, num_segments, **settings)


def released_crop(width, height, rng):
    """TPN's draws: ten attempts, in which each side is compared with the other side of the frame. (x, y, x2, y2)"""
    for _ in range(10):
        area = rng.uniform(0.08, 1) * width * height
        ratio = rng.uniform(3 / 4, 4 / 3)
        w, h = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
        if rng.random() < 0.5:
            w, h = h, w
        if w <= height and h <= width:
            x, y = rng.integers(0, width - h + 1), rng.integers(0, height - w + 1)
            return x, y, min(x + w, width), min(y + h, height)
    side = min(width, height)
    x, y = (width - side) // 2, (height - side) // 2
    return x, y, x + side, y + side


@pytest.mark.parametrize(("width", "height"), [(176, 100), (100, 176), (90, 90), (8, 9), (300, 20)])
def test_random_resized_crops_are_tpns(width, height):
    crops = []
    for seed in range(600):
        crop = transforms.random_resized_crop(width, height, np.random.default_rng(seed))
        x, y, right, bottom = released_crop(width, height, np.random.default_rng(seed))
        assert tuple(crop) == (x, y, right - x, bottom - y, False)
        assert 0 <= crop.x < crop.x + crop.width <= width and 0 <= crop.y < crop.y + crop.height <= height
        crops.append(crop)
    assert max(crop.width for crop in crops) <= height and max(crop.height for crop in crops) <= width
    if (width, height) == (176, 100):  # what is too high is cut off
        assert sum(crop.width / crop.height > 1.34 or crop.height == height for crop in crops) > 10
    if (width, height) == (300, 20):
        central = transforms.Crop(140, 0, 20, 20)
        assert 0 < crops.count(central) < 600
    if width == height == 90:
        shares = np.array([crop.width * crop.height / 8100 for crop in crops])
        ratios = np.array([crop.width / crop.height for crop in crops])
        assert shares.min() > 0.06 and ratios.min() > 0.7 and ratios.max() < 1.43
        assert abs((ratios > 1).mean() - 0.5) < 0.07 and shares.max() > 0.9


@pytest.mark.parametrize("way", PIXELS)
def test_a_clip_has_the_drawn_crop(videos, way):
    data = train_set(videos, crop="random_resized", pixels=way, seed=5)
    for epoch in range(10):
        clip, label, i = data[epoch, 1]
        rng = np.random.default_rng((5, epoch, 1))
        numbers = [x * 2 + int(draw) + 1 for x, draw in enumerate(rng.integers(2, size=4))]
        crop = transforms.random_resized_crop(WIDTH, HEIGHT, rng)
        frames = videos[0].frames(videos[1][1], numbers)
        assert torch.equal(clip, cut(frames, (WIDTH, HEIGHT), [crop], 32, way)[0]) and (label, i) == (1, 1)


@pytest.mark.parametrize("way", PIXELS)
@pytest.mark.parametrize("crop", transforms.TRAIN_CROPS)
def test_two_crops_are_rubiksnets(videos, way, crop):
    """The first crop is resized to 40 px and mirrored. The clip is a random square of 32 px of it."""
    data = train_set(videos, crop=crop, crop_size=40, pixels=way, flip="swap", mirror_pairs={1: 2, 2: 1})
    places, labels = set(), set()
    for epoch in range(150):
        clip, label, _ = data[epoch, 1]
        rng = np.random.default_rng((0, epoch, 1))
        numbers = [x * 2 + int(draw) + 1 for x, draw in enumerate(rng.integers(2, size=4))]
        first = transforms.training_crop(crop, WIDTH, HEIGHT, 40, rng)
        mirrored = rng.random() < 0.5
        x, y = rng.integers(9, size=2)
        frames = videos[0].frames(videos[1][1], numbers)
        whole = cut(frames, (WIDTH, HEIGHT), [first._replace(mirrored=mirrored)], 40, way)[0]
        assert torch.equal(clip, whole[:, :, y : y + 32, x : x + 32]) and label == (2 if mirrored else 1)
        assert clip.is_contiguous(memory_format=torch.channels_last)
        places.add(int(x))
        labels.add(label)
    assert places == set(range(9)) and labels == {1, 2}


def released_colours(frames, rng, order):
    """TPN's steps, one after the other, on float images in blue, green, red. ``order`` is the place of contrast."""
    bright, contrast = rng.uniform(-32, 32), rng.uniform(0.6, 1.4)
    saturation, angle = rng.uniform(0.6, 1.4), rng.uniform(-18, 18) * math.pi
    coins = rng.random((len(frames), 4)) > 0.5
    light = [
        sum(vector * value * draw for vector, value, draw in zip(row, (55.46, 4.794, 1.148), draws, strict=True))
        for draws in [rng.normal(0, 0.1, 3)]
        for row in ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
    ]
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    to_rgb = np.array([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.107, 1.705]])
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    for frame, coin in zip(frames, coins, strict=True):
        image = frame[..., ::-1].astype(float)
        if coin[0]:
            image = image + bright
        if coin[1] and order == "first":
            image = image * contrast
        if coin[2]:
            grey = (image * [0.299, 0.587, 0.114]).sum(-1, keepdims=True)
            image = image * saturation + (1 - saturation) * grey
        if coin[3]:
            image = image @ (to_rgb @ turn @ to_yiq).T
        if coin[1] and order == "last":
            image = image * contrast
        yield (image + light[::-1])[..., ::-1], coin


@pytest.mark.parametrize("order", ["first", "last"])
def test_colours_are_tpns(order):
    rng, beyond, coins = np.random.default_rng(0), 0, []
    for seed in range(60):
        frames = rng.integers(0, 256, (8, 6, 5, 3), dtype=np.uint8)
        clip = torch.from_numpy(frames).movedim(-1, 1)
        changed = colour.jitter(clip, np.random.default_rng(seed))
        assert changed.dtype == torch.float16 and changed.shape == clip.shape
        assert changed.is_contiguous(memory_format=torch.channels_last)
        steps = list(released_colours(frames, np.random.default_rng(seed), order))
        expected = np.stack([image for image, _ in steps])
        np.testing.assert_allclose(changed.movedim(1, -1).double(), expected, rtol=1e-3, atol=0.01)
        beyond += ((expected < 0) | (expected > 255)).any()
        coins += [coin for _, coin in steps]
    assert beyond > 30  # such colours are kept
    shares = np.mean(coins, 0)
    assert (abs(shares - 0.5) < 0.1).all() and len({tuple(coin) for coin in coins}) == 16


def test_amounts_are_of_a_clip_and_coins_of_a_frame():
    """The frames of a clip have one of at most 16 maps, and all of them the same lighting."""
    lights = []
    for seed in range(200):
        matrices, offsets = colour.color_maps(64, np.random.default_rng(seed))
        plain = (matrices == torch.eye(3)).all((1, 2))
        found = {tuple(row) for row in torch.cat([matrices.flatten(1), offsets], 1).tolist()}
        assert 8 < len(found) <= 16 and len(offsets[plain].unique(dim=0)) <= 2  # with and without brightness
        lights.append(offsets[plain][:, 0] - offsets[plain][:, 1])  # brightness is the same for all colours
    spread = np.std([light[0].item() for light in lights if len(light)])
    expected = 0.1 * np.linalg.norm((colour.EIGENVECTORS[0] - colour.EIGENVECTORS[1]) * colour.EIGENVALUES)
    assert spread == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("crop", transforms.TRAIN_CROPS)
def test_clips_depend_on_the_seed_and_not_on_the_number_of_workers(videos, crop):
    settings = {"crop": crop, "crop_size": 40, "color_jitter": "tpn", "flip": "swap", "mirror_pairs": {0: 1, 1: 0}}

    def batches(workers, seed=0):
        data = train_set(videos, **settings, seed=seed)
        places = [[(epoch, i) for i in range(3)] for epoch in range(4)]
        return list(make_loader(data, workers, torch.device("cpu"), collate, batch_sampler=places))

    alone, two, other = batches(0), batches(2), batches(0, seed=1)
    for a, b, c in zip(alone, two, other, strict=True):
        assert a[0].dtype == torch.float16 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert not torch.equal(a[0], c[0])
    assert not torch.equal(alone[0][0], alone[1][0])


def test_the_default_draws_are_unchanged(videos):
    """New settings draw after the old ones, so that a clip has the same frames, crop and mirror image."""
    plain, jittered = train_set(videos, flip="skip"), train_set(videos, flip="skip", color_jitter="tpn")
    assert clip_bytes(jittered) == 2 * clip_bytes(plain) == 2 * 4 * 3 * 32**2
    for epoch in range(10):
        rng = np.random.default_rng((0, epoch, 0))
        rng.integers(2, size=4)
        transforms.multi_scale_crop(WIDTH, HEIGHT, 32, rng)
        rng.random()
        assert torch.equal(jittered[epoch, 0][0], colour.jitter(plain[epoch, 0][0], rng))


def test_a_jittered_clip_is_normalised_like_any_other(videos):
    clip = train_set(videos, color_jitter="tpn")[0, 0][0]
    before = clip.clone()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transforms.IMAGENET_MEAN, transforms.IMAGENET_STD))
    torch.testing.assert_close(Modality("RGB").normalise(clip), (clip.float() / 255 - mean) / std)
    assert torch.equal(clip, before)


def test_a_run_trains_with_them_and_says_what_does_not_fit(tmp_path):
    dataset = make_dataset(tmp_path)
    command = ["main.py", dataset, "tsm_tiny", *quick_flags(epochs=1, input_size=40, val_crop=40), "--run"]
    flags = ["--train_crop", "random_resized", "--train_crop_size", 48, "--color_jitter", "tpn"]
    for number, more in enumerate([["--workers", 1], ["--on_bad_video", "skip", "--pixels", "fast"]]):
        result = run_inside(*command, f"run{number}", *flags, *more, cwd=tmp_path)
        assert result.returncode == 0 and "color_jitter: tpn" in result.stdout, result.stdout
    for wrong, message in [
        (["--color_jitter", "tpm"], "color_jitter is 'tpm'; choose from none, tpn"),
        (["--train_crop", "random"], "train_crop is 'random'; choose from multi_scale, random_resized"),
        (["--train_crop_size", 39], "train_crop_size 39 is below input_size 40, which is cut from it"),
        (["--color_jitter", "tpn", "--modality", "RGBDiff"], "color_jitter tpn changes the colours of RGB frames"),
        (["--train_frames", "units"], "train_frames units is for networks with units, such as v4d_r50"),
        (["--units", 4], "tsm_tiny cannot be built with"),
        (["--units", 2, "--model_options", "{units: 2}"], "model_options holds units 2; give it as --units alone"),
        (["--units", 3], "num_segments 4 is no multiple of units 3"),
        (["--val_clip_rule", "sparse_units"], "val_clip_rule sparse_units is for networks with units"),
        (["--val_clip_rule", "random"], "val_clip_rule is 'random'; choose from usual, all_but_last, units"),
        (
            ["--test_clip_rule", "unifrom"],
            "test_clip_rule is 'unifrom'; did you mean uniform? choose from usual, uniform,",
        ),
        (["--test_views", "3x3"], "views '3x3' must be CROPSxCLIPS with 1, 3, 5 or 10 crops and 1, 2 or 10 clips, as"),
    ]:
        result = run_inside(*command, "wrong", *wrong, cwd=tmp_path)
        assert result.returncode == 1 and f"error: {message}" in result.stdout, result.stdout


def test_a_run_has_the_clips_of_its_recipe(tmp_path):
    """Training and validation clips are those of the rules in the recipe."""
    dataset = load_dataset_config(str(make_dataset(tmp_path)))
    clip_settings = ClipSettings(8, units=4)
    for changes, frames, validated in [
        ({"train_frames": "units", "val_clip_rule": "units"}, "units", "units"),
        ({"train_frames": "sparse_units", "val_clip_rule": "sparse_units"}, "sparse_units", "sparse_units"),
        ({"train_crop": "random_resized", "val_clip_rule": "all_but_last"}, "segments", "all_but_last"),
    ]:
        recipe = load_recipe("tsm_tiny", "", num_segments=8, units=4, workers=0, flip="none", **changes)
        loader, val_set = training_data(dataset, recipe, plan_batch(4, None, 1), torch.device("cpu"))
        train = loader.dataset
        for i in range(3):
            rng = np.random.default_rng((0, 2, i))
            numbers = training_frames(frames, train.videos[i].num_frames, clip_settings, rng)
            crop = transforms.training_crop(recipe.train_crop, 48, 48, 48, rng)
            images = train.source.frames(train.videos[i], numbers)
            assert torch.equal(train[2, i][0], cut(images, (48, 48), [crop], 48, "faithful")[0])
            (numbers,) = CLIP_RULES[validated].clips(val_set.videos[i].num_frames, clip_settings, i)
            images = np.stack(val_set.source.frames(val_set.videos[i], numbers))
            np.testing.assert_array_equal(val_set[i][0][0].movedim(1, -1), images)
