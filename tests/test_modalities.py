"""RGB, differences of frames and optical flow: files of a segment, channels, flips, and the network's first weights."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet50

from data import (
    RGB,
    DataError,
    EvalDataset,
    FrameFolder,
    Modality,
    TrainDataset,
    collate,
    load_dataset_config,
    read_list,
    sampling,
    transforms,
)
from data.pixels import PIXELS, cut
from engine.batch import BatchPlan, StepSampler
from engine.workers import batches
from models import WeightsError, build_model, list_models, load_weights
from models.video_network import WithAuxiliary

TINY = list_models(toy=True)
WIDTH, HEIGHT, FRAMES = 40, 30, 9
# form -> (image_tmpl, folder on the disk, path in the list)
FORMS = {
    "pairs": ("flow_{}_{:05d}.png", "v 1", "v 1"),
    "packed": ("{:05d}.png", "v 1", "v 1"),
    "numbered": ("{:06d}-{}_{:05d}.png", "all/000042", "all/42"),
    "numbered as listed": ("{:06d}-{}_{:05d}.png", "42", "42"),
}


def pixels(kind, number):
    """Noise that differs for each file: kind x or y (H, W), rgb (H, W, 3)."""
    shape = (HEIGHT, WIDTH, 3) if kind == "rgb" else (HEIGHT, WIDTH)
    return np.random.default_rng((len(kind), ord(kind[0]), number)).integers(0, 256, shape, np.uint8)


def draw(root, form, n=FRAMES):
    """Write a video of n flow frames; returns its list and its image_tmpl."""
    image_tmpl, folder, path = FORMS[form]
    (root / folder).mkdir(parents=True)
    for k in range(1, n + 1):
        if form == "packed":
            packed = np.stack([pixels("x", k), pixels("y", k), pixels("x", k) * 0], 2)
            Image.fromarray(packed).save(root / folder / image_tmpl.format(k))
            continue
        for axis in "xy":
            before = (42,) if form.startswith("numbered") else ()
            Image.fromarray(pixels(axis, k)).save(root / folder / image_tmpl.format(*before, axis, k))
    return listed(root, path, n), image_tmpl


def draw_rgb(root, n=FRAMES):
    (root / "v").mkdir()
    for k in range(1, n + 1):
        Image.fromarray(pixels("rgb", k)).save(root / "v" / f"{k:05d}.png")
    return listed(root, "v", n), "{:05d}.png"


def listed(root, path, n):
    (root / "list.txt").write_text(f"{path} {n} 1\n")
    return read_list(root / "list.txt", 2)


def train_set(root, videos, image_tmpl, modality, **settings):
    settings = {"resize": None, "input_size": 24, "flip": "swap", "mirror_pairs": {0: 1, 1: 0}, "seed": 3} | settings
    return TrainDataset(videos, FrameFolder(root, image_tmpl), 2, modality=modality, **settings)


def eval_set(root, videos, image_tmpl, modality, **settings):
    settings = {"resize": None, "crop_size": 30, "input_size": 30, "short_videos": "spread"} | settings
    return EvalDataset(videos, FrameFolder(root, image_tmpl), 2, modality=modality, **settings)


@pytest.mark.parametrize(
    ("name", "length", "frames", "stored", "channels"),
    [("RGB", 5, 1, 3, 3), ("Flow", 5, 5, 10, 10), ("Flow", 1, 1, 2, 2), ("RGBDiff", 5, 6, 18, 15)],
)
def test_numbers_of_frames_and_channels(name, length, frames, stored, channels):
    modality = Modality(name, length)
    assert (modality.frames_per_segment, modality.stored_channels, modality.channels) == (frames, stored, channels)
    assert length == 1 or modality == Modality(name)  # 5 is the default
    assert (modality == RGB) == (name == "RGB")


def test_sampling_of_longer_segments():
    """Compare with TSM's formulas. m is the number of consecutive frames."""
    for n, t, m in np.ndindex(41, 12, 8):
        n, t, m = n + 1, t + 1, m + 1
        tick = (n - m + 1) / t
        centres, starts = [int(tick / 2 + tick * x) + 1 for x in range(t)], [int(tick * x) + 1 for x in range(t)]
        validation = centres if n > t + m - 1 else [1] * t
        assert sampling.test_clips(n, t, 1, "first_frame", m) == [validation]
        if n >= m:
            assert sampling.test_clips(n, t, 2, "spread", m) == [centres, starts]
        else:
            assert sampling.test_clips(n, t, 2, "spread", m) == [[1] * t] * 2
        assert sampling.test_clips(n, t, 10, "spread", m) == sampling.test_clips(n, t, 10, "spread")


def test_training_draws_of_longer_segments():
    for n, t, m in np.ndindex(41, 12, 8):
        n, t, m = n + 1, t + 1, m + 1
        rng, duration = np.random.default_rng((n, t, m)), (n - m + 1) // t
        drawn = sampling.random_segments(n, t, np.random.default_rng((n, t, m)), m)
        if duration > 0:
            assert drawn == [x * duration + draw + 1 for x, draw in enumerate(rng.integers(duration, size=t))]
        elif n > t and n >= m:
            assert drawn == sorted(draw + 1 for draw in rng.integers(n - m + 1, size=t)) and drawn[-1] <= n - m + 1
        else:
            assert drawn == [1] * t
        if m == 1:
            assert sampling.random_segments(n, t, np.random.default_rng((n, t, m))) == drawn


@pytest.mark.parametrize("form", FORMS)
def test_which_flow_files_make_a_segment(tmp_path, form):
    (video,), image_tmpl = draw(tmp_path, form)
    images = Modality("Flow", 3).read(video, [4, 1, 8], FrameFolder(tmp_path, image_tmpl))
    expected = [pixels(axis, k) for k in (4, 5, 6, 1, 2, 3, 8, 9, 9) for axis in "xy"]  # the last frame repeats
    assert all(image.dtype == np.uint8 for image in images)
    np.testing.assert_array_equal(np.stack(images), np.stack(expected))


@pytest.mark.parametrize(("modality", "numbers"), [(RGB, [4, 8]), (Modality("RGBDiff", 2), [4, 5, 6, 8, 9, 9])])
def test_which_frames_make_a_segment(tmp_path, modality, numbers):
    (video,), image_tmpl = draw_rgb(tmp_path)
    images = modality.read(video, [4, 8], FrameFolder(tmp_path, image_tmpl))
    np.testing.assert_array_equal(np.stack(images), np.stack([pixels("rgb", k) for k in numbers]))


def views(image):
    """The corner and centre crops of 30 px of a frame of 40 x 30 px."""
    return [image[:, x : x + 30] for x in (0, 8, 0, 8, 4)]


def test_ten_crops_of_flow(tmp_path):
    """Channels are x and y of one frame, then of the next. In a mirror image, x is inverted but y is not."""
    data = eval_set(tmp_path, *draw(tmp_path, "pairs"), Modality("Flow", 2), num_crops=10, num_clips=2)
    clips, label, _ = data[0]
    assert clips.shape == (20, 2, 4, 30, 30) and clips.dtype == torch.uint8 and label == 1
    for crop in range(10):
        for clip, numbers in enumerate([(3, 7), (1, 5)]):  # centres and starts of the 8 first frames
            for segment, number in enumerate(numbers):
                files = [("x", number), ("y", number), ("x", number + 1), ("y", number + 1)]
                planes = [views(pixels(*file))[crop % 5] for file in files]
                if crop >= 5:
                    planes = [255 - p[:, ::-1] if i in (0, 2) else p[:, ::-1] for i, p in enumerate(planes)]
                np.testing.assert_array_equal(clips[2 * crop + clip, segment], np.stack(planes))


def test_ten_crops_of_differences(tmp_path):
    """No colour is inverted. The channels of the frames follow one another."""
    data = eval_set(tmp_path, *draw_rgb(tmp_path), Modality("RGBDiff", 2), num_crops=10)
    clips = data[0][0]
    assert clips.shape == (10, 2, 9, 30, 30)
    for crop in range(10):
        for segment, number in enumerate((2, 6)):  # centres of the 7 first frames
            planes = [views(pixels("rgb", number + k))[crop % 5] for k in range(3)]
            planes = [plane[:, ::-1] if crop >= 5 else plane for plane in planes]
            np.testing.assert_array_equal(clips[crop, segment], np.concatenate(planes, 2).transpose(2, 0, 1))


@pytest.mark.parametrize("way", PIXELS)
def test_a_mirror_image_of_flow_inverts_x(way):
    """Whether images are flow is said, and not guessed. A mirror keeps the values of grey images that are not flow."""
    images = [pixels(axis, k) for k in (1, 2) for axis in "xy"]
    crop = transforms.Crop(5, 0, HEIGHT, HEIGHT, mirrored=True)
    cropped = np.stack(images)[:, None, :, 5 : 5 + HEIGHT][..., ::-1]  # (4, 1, H, H)
    inverted = np.stack([255 - image if i % 2 == 0 else image for i, image in enumerate(cropped)])
    for flow, expected in ((False, cropped), (True, inverted)):
        (result,) = cut(images, (WIDTH, HEIGHT), [crop], HEIGHT, way, flow)
        np.testing.assert_array_equal(result, expected)


def test_x_of_a_mirrored_crop_is_inverted_before_its_resize(tmp_path):
    """The released tests do so. Pillow rounds halves up, so the other order gives other pixels."""
    data = eval_set(tmp_path, *draw(tmp_path, "pairs"), Modality("Flow", 1), num_crops=10, input_size=47)
    clips = data[0][0]
    for segment, number in enumerate((3, 7)):  # centres of the 9 frames
        for crop, plane in enumerate(views(pixels("x", number))):
            inverted = Image.fromarray(np.ascontiguousarray(255 - plane[:, ::-1]))
            expected = np.asarray(inverted.resize((47, 47), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(clips[5 + crop, segment, 0], expected)


def training_crops(plane, scales):
    """Every training crop of 24 px of a plane, and its mirror image with inverted values."""
    image, found = Image.fromarray(plane), set()
    for width, height in transforms.crop_sizes(WIDTH, HEIGHT, 24, scales):
        for x, y in transforms.crop_offsets(WIDTH, HEIGHT, width, height):
            crop = image.crop((x, y, x + width, y + height)).resize((24, 24), Image.Resampling.BILINEAR)
            found |= {crop.tobytes(), (255 - np.asarray(crop)[:, ::-1]).tobytes()}
    return found


def test_training_crops_of_flow_leave_out_the_smallest(tmp_path):
    data = train_set(tmp_path, *draw(tmp_path, "pairs", 1), Modality("Flow", 2))
    drawn = set()
    for epoch in range(2000):
        clip, label, _ = data[epoch, 0]
        assert clip.shape == (2, 4, 24, 24) and clip.dtype == torch.uint8 and label in (0, 1)
        assert torch.equal(clip[0], clip[1]) and torch.equal(clip[:, :2], clip[:, 2:])  # one frame, one crop for all
        drawn.add(clip[0, 0].numpy().tobytes())
    possible = training_crops(pixels("x", 1), (1, 0.875, 0.75))
    assert drawn == possible and possible < training_crops(pixels("x", 1), transforms.SCALES)
    assert Modality("RGBDiff").scales == (1, 0.875, 0.75) and RGB.scales == (1, 0.875, 0.75, 0.66)


@pytest.mark.parametrize(("modality", "duration", "scales"), [(RGB, 4, 4), (Modality("RGBDiff", 2), 3, 3)])
def test_training_clips_draw_by_draw(tmp_path, modality, duration, scales):
    """For RGB, the random numbers and their order are the same as before modalities existed."""
    data = train_set(tmp_path, *draw_rgb(tmp_path), modality)
    for epoch in range(20):
        rng = np.random.default_rng((3, epoch, 0))
        numbers = [1, 1 + duration] + rng.integers(duration, size=2)
        sizes = transforms.crop_sizes(WIDTH, HEIGHT, 24, (1, 0.875, 0.75, 0.66)[:scales])
        width, height = sizes[rng.integers(len(sizes))]
        x, y = transforms.crop_offsets(WIDTH, HEIGHT, width, height)[rng.integers(13)]
        files = [pixels("rgb", int(number) + k) for number in numbers for k in range(modality.frames_per_segment)]
        crops = [Image.fromarray(file).crop((x, y, x + width, y + height)) for file in files]
        expected = np.stack([crop.resize((24, 24), Image.Resampling.BILINEAR) for crop in crops])
        flip = rng.random() < 0.5
        expected = (expected[:, :, ::-1] if flip else expected).transpose(0, 3, 1, 2).reshape(2, -1, 24, 24)
        clip, label, _ = data[epoch, 0]
        np.testing.assert_array_equal(clip, expected)
        assert label == (0 if flip else 1)


def test_normalisation_of_flow():
    clips = torch.tensor([0, 51, 128, 255], dtype=torch.uint8).view(1, 1, 4, 1, 1)
    normalised = Modality("Flow", 2).normalise(clips)
    expected = [-0.5 / 0.226, -0.3 / 0.226, (128 / 255 - 0.5) / 0.226, 0.5 / 0.226]
    np.testing.assert_allclose(normalised.flatten(), expected, atol=1e-6)
    assert normalised.shape == clips.shape and normalised.dtype == torch.float32
    assert clips.flatten().tolist() == [0, 51, 128, 255]


def test_differences_of_frames():
    clips = torch.randint(0, 256, (2, 3, 12, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalised = Modality("RGBDiff", 3).normalise(clips)
    frames = clips.numpy().astype(float)
    expected = [frames[:, :, 3 * k + c + 3] - frames[:, :, 3 * k + c] for k in range(3) for c in range(3)]
    np.testing.assert_allclose(normalised, np.stack(expected, 2) / 255, atol=1e-6)
    assert normalised.shape == (2, 3, 9, 4, 5) and normalised.dtype == torch.float32
    rgb = clips[:, :, :3]
    assert torch.equal(RGB.normalise(rgb), transforms.normalise(rgb))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("channels", [10, 15])
def test_networks_on_other_channels(name, channels):
    model = build_model(name, 5, 4, in_channels=channels)
    output = model(torch.randn(2, 4, channels, 32, 32))
    parts = output if isinstance(output, WithAuxiliary) else [output]
    assert all(logits.shape == (2, 5) for logits in parts)
    sum(parts).sum().backward()
    stem = model.base_model.conv1
    assert stem.weight.shape == (16, channels, 3, 3) and stem.bias is None and stem.stride == (2, 2)
    assert stem.weight.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.1)  # torchvision's: He, fan out
    with pytest.raises(ValueError, match=rf"takes clips \(N, 4, {channels}, H, W\), got \(2, 4, 3, 32, 32\).*in_chan"):
        model(torch.randn(2, 4, 3, 32, 32))
    with pytest.raises(ValueError, match="in_channels=0 must be at least 1"):
        build_model(name, 5, 4, in_channels=0)


@pytest.mark.parametrize(("name", "channels"), [("tsm_r50", 10), ("sda_tsn_r50", 15), ("rsanet_r50", 10)])
def test_imagenet_start_of_other_channels(name, channels):
    imagenet = resnet50()
    start = imagenet.conv1.weight.detach().clone()
    model = build_model(name, 5, 8, in_channels=channels)
    report = load_weights(model, imagenet.state_dict())
    assert model.base_model.conv1.weight.shape == (64, channels, 7, 7)
    for channel in range(channels):
        torch.testing.assert_close(
            model.base_model.conv1.weight[:, channel], (start[:, 0] + start[:, 1] + start[:, 2]) / 3
        )
    assert torch.equal(model.base_model.layer1[0].conv1.weight, imagenet.layer1[0].conv1.weight)
    assert f"the first convolution averaged over RGB for {channels} channels" in str(report)
    assert "base_model.conv1.weight" in report.loaded and str(report).count("\n") == 2


def test_what_is_not_converted():
    imagenet = resnet50()
    model = build_model("tsn_r50", 5, 8)
    assert "averaged" not in str(load_weights(model, imagenet.state_dict()))
    assert torch.equal(model.base_model.conv1.weight, imagenet.conv1.weight)
    rgb, flow = build_model("tsn_tiny", 5, 4), build_model("tsn_tiny", 5, 4, in_channels=10)
    with pytest.raises(WeightsError, match="trained on another modality or data_length"):
        load_weights(flow, rgb.state_dict())
    assert load_weights(build_model("tsn_tiny", 5, 4, in_channels=10), flow.state_dict()).layout == "own"


@pytest.mark.parametrize("modality", [RGB, Modality("RGBDiff", 2), Modality("Flow", 2)], ids=lambda m: m.name)
def test_from_files_to_logits(tmp_path, modality):
    drawn = draw(tmp_path, "pairs") if modality.name == "Flow" else draw_rgb(tmp_path)
    model = build_model("tsm_tiny", 2, 2, in_channels=modality.channels)
    for data, views, batching in (
        (train_set(tmp_path, *drawn, modality), (), {"batch_sampler": StepSampler(1, BatchPlan(1), 0, seed=0)}),
        (eval_set(tmp_path, *drawn, modality, num_crops=3), (3,), {"batch_size": 1}),
    ):
        loader = torch.utils.data.DataLoader(data, num_workers=1, collate_fn=collate, **batching)
        ((clips, _, _),) = batches(loader)
        size = clips.shape[-1]
        assert clips.shape == (1, *views, 2, modality.stored_channels, size, size) and clips.dtype == torch.uint8
        assert model(modality.normalise(clips).reshape(-1, 2, modality.channels, size, size)).shape[1] == 2


def test_templates(tmp_path):
    file = tmp_path / "own.yaml"
    text = "name: own\nnum_classes: 2\nroot: frames\ntrain_list: t.txt\nval_list: v.txt\nimage_tmpl: '{:05d}.jpg'\n"
    file.write_text(text)
    for good in ("img_{:05d}.jpg", "flow_{}_{:05d}.jpg", "{:06d}-{}_{:05d}.jpg", "{1:05d}{0}.jpg"):
        assert load_dataset_config(str(file), image_tmpl=good).image_tmpl == good
    for bad in ("frame.jpg", "{:05d}_{}.jpg", "{}_{}_{}_{}.jpg", "{0}_{0}.jpg", "{name}.jpg", "{:05d.jpg", "{[0]}.jpg"):
        with pytest.raises(DataError, match="own.yaml: image_tmpl .* must hold one frame number.*flow_{}_{:05d}.jpg"):
            load_dataset_config(str(file), image_tmpl=bad)


def test_what_does_not_suit_the_modality(tmp_path):
    for make in (train_set, eval_set):
        for modality in (RGB, Modality("RGBDiff")):
            expected = r"image_tmpl 'flow_{}_{:05d}.png' names x and y files of flow, not frames for \w+; choose"
            with pytest.raises(DataError, match=expected):
                make(tmp_path, [], "flow_{}_{:05d}.png", modality)
        with pytest.raises(DataError, match="image_tmpl 'frame' must hold"):
            make(tmp_path, [], "frame", Modality("Flow"))
    with pytest.raises(DataError, match="modality 'Depth' must be one of RGB, RGBDiff, Flow"):
        Modality("Depth")
    with pytest.raises(DataError, match="data_length 0 must be at least 1"):
        Modality("Flow", 0)


def break_flow(root, how):
    """Write a flow video that cannot be read; returns its list and its image_tmpl."""
    form = "packed" if how == "grey" else "numbered as listed" if how == "name" else "pairs"
    videos, image_tmpl = draw(root, form)
    if how == "frame":
        (root / "v 1" / "flow_y_00006.png").unlink()
    elif how == "folder":
        (root / "v 1").rename(root / "moved")
    elif how == "grey":
        Image.fromarray(pixels("x", 6)).save(root / "v 1" / "00006.png")
    elif how == "text":
        (root / "v 1" / "flow_x_00006.png").write_bytes(b"no image")
    elif how == "name":
        (root / "42").rename(root / "v42")
        videos = listed(root, "v42", FRAMES)
    return videos, image_tmpl


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "frame",
            r"no frame flow_y_00006.png in \S*v 1, which holds 17 files .*says 9 flow frames of an x and a y file",
        ),
        ("folder", r"no folder \S*v 1; check the dataset's root"),
        (
            "grey",
            r"00006.png is grey, not flow packed as red and green; .* '{:05d}.png' needs a field before the number",
        ),
        ("text", r"flow_x_00006.png is not a readable image"),
        ("name", r"folder 'v42' is not a number, which image_tmpl '{:06d}-{}_{:05d}.png' begins with; use"),
    ],
)
def test_unreadable_flow_is_an_error_in_one_line(tmp_path, how, message):
    error = eval_set(tmp_path, *break_flow(tmp_path, how), Modality("Flow", 5))[0]
    assert isinstance(error, DataError) and "\n" not in str(error)
    with pytest.raises(DataError, match="list.txt:1: .*" + message):
        raise error


def test_the_log_says_what_is_read():
    assert RGB.describe(FrameFolder("r", "{:05d}.jpg")) == "modality: RGB, one frame a segment ({:05d}.jpg), 3 channels"
    assert "5 differences of 6 frames a segment ({}.jpg), 15 channels" in Modality("RGBDiff").describe(
        FrameFolder("r", "{}.jpg")
    )
    assert "red x and green y of a file ({}.jpg), 10 channels" in Modality("Flow").describe(FrameFolder("r", "{}.jpg"))
    assert "an x and a y file each ({}{}.jpg), 4 channels" in Modality("Flow", 2).describe(FrameFolder("r", "{}{}.jpg"))
