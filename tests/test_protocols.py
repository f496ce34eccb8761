"""Named tests: their views, how the scores of views are averaged, and what the programs say about both."""

import re

import numpy as np
import pytest
import torch
from score_files import run_test, train_for_tests
from toy_run import NAMES, quick_flags, run_inside

from data import load_dataset_config, read_list, transforms
from data.sampling import AS_IT_IS
from data.transforms import normalise
from engine.config import BEFORE_KEYS, KEYS, RECIPES, ConfigError, load_recipe, parse_views
from engine.evaluate import evaluate
from engine.precision import Precision
from engine.protocols import GEOMETRY, PROTOCOLS, choose_views
from engine.testing import Member, make_test_set
from models import Family, build_model, families, load_weights
from models.tsn import tsm

BEST = "resnet_rgb_model_best.pth.tar"

# name: views, resize, crop, input, clip rule, short videos (where they matter), crop rule, average
RELEASED = {
    "rsa": ("1x1", (240, 320), 224, 224, "usual", "first_frame", "grid", "logits"),
    "sda": ("1x1", 256, 224, 224, "usual", "spread", "grid", "logits"),
    "sda_full": ("1x1", 256, 256, 224, "usual", "spread", "grid", "logits"),
    "tam": ("1x1", 256, 224, 224, "usual", "spread", "grid", "logits"),
    "tam_full": ("3x2", 256, 256, 256, "uniform", "", "grid", "logits"),
    "tea": ("1x1", 256, 224, 224, "usual", "spread", "grid", "logits"),
    "tea_full": ("3x10", 256, 256, 256, "random", "", "grid", "logits"),
    "stm": ("3x10", 256, 256, 224, "random", "", "grid", "softmax"),
    "teinet": ("1x1", 256, 224, 224, "usual", "spread", "grid", "logits"),
    "gst": ("1x1", 256, 224, 224, "usual", "first_frame", "grid", "logits"),
    "c3d": ("1x1", 256, 224, 224, "usual", "first_frame", "grid", "logits"),
    "tin": ("1x1", 256, 224, 224, "usual", "spread", "grid", "logits"),
    "tin_full": ("3x2", 256, 256, 256, "centres_random", "", "grid", "softmax"),
    "tpn": ("3x2", 256, 256, 256, "interleaved", "", "long_side", "softmax"),
    "smallbig": ("3x2", 256, 256, 256, "usual", "spread", "diagonal", "logits"),
    "rubiksnet": ("1x1", 256, 224, 224, "usual", "spread", "grid", "logits"),
    "rubiksnet_full": ("3x2", 256, 224, 224, "usual", "spread", "grid", "logits"),
    "v4d": ("3x1", (256, 320), 256, 256, "units", "", "grid", "logits"),
    "v4d_slow": ("3x36", (256, 320), 256, 256, "combinations", "", "grid", "softmax"),
    "v4d_sparse": ("3x1", (256, 320), 256, 256, "sparse_units", "", "grid", "logits"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_for_tests(tmp_path_factory.mktemp("trained"))


def score(trained, *flags: object, weights: object = f"net_runs/run/{BEST}", processes: int = 1) -> tuple[str, dict]:
    return run_test(*trained, weights, *flags, processes=processes)


def error_of(trained, *flags: object, weights: object = f"net_runs/run/{BEST}") -> str:
    folder, dataset = trained
    command = ["test_models.py", dataset, "--weights", weights, "--device", "cpu", "--workers", 0, *flags]
    result = run_inside(*command, cwd=folder)
    assert result.returncode == 1 and "Traceback" not in result.stdout, result.stdout
    return result.stdout


@pytest.mark.parametrize("name", RELEASED)
def test_protocols_are_the_released_tests(name):
    views = choose_views(load_recipe("tsm_r50", "something_v1", num_segments=8, units=4), name)
    numbers, resize, crop, size, clip_rule, short, crop_rule, average = RELEASED[name]
    assert (f"{views.crops}x{views.clips}", views.resize, views.crop, views.input) == (numbers, resize, crop, size)
    assert (views.clip_rule, views.crop_rule, views.view_average) == (clip_rule, crop_rule, average)
    assert views.short_videos == short or not short
    assert set(PROTOCOLS[name].settings) == set(GEOMETRY) - {"mirrored_scores"}


def test_help_lists_every_protocol_with_its_source(tmp_path, monkeypatch):
    assert set(PROTOCOLS) == set(RELEASED)
    monkeypatch.setenv("COLUMNS", "200")
    shown = run_inside("test_models.py", "--help", cwd=tmp_path).stdout
    lines = shown[shown.index("\nprotocols:") :].splitlines()[2:]
    assert [line.split()[0] for line in lines[::2]] == list(PROTOCOLS)
    for line, text, protocol in zip(lines[::2], lines[1::2], PROTOCOLS.values(), strict=True):
        assert text.strip() == protocol.text and re.search(r" \d+x\d+ @\d+.*, resize \d+", line)
    assert "tam_full        3x2 @256 (clips uniform), resize 256, crop 256\n" in shown


def test_keys_of_a_recipe_have_the_meaning_of_a_protocol():
    names = {"views": "test_views", "resize": "test_resize", "crop": "test_crop", "crop_rule": "test_crop_rule"}
    names |= {"input": "test_input", "clip_rule": "test_clip_rule", "short_videos": "test_short_videos"}
    names |= {"view_average": "test_view_average", "pixels": "pixels"}
    for name, protocol in PROTOCOLS.items():
        changes = {names[key]: value for key, value in protocol.settings.items()}
        recipe = load_recipe("tsm_r50", "something_v1", num_segments=8, units=4, **changes)
        assert choose_views(recipe, None) == choose_views(load_recipe("tsm_r50", "ucf101", units=4), name)


def test_settings_of_one_view_that_change_nothing_are_the_usual_ones():
    recipe = load_recipe("tsm_r50", "something_v1")
    one = choose_views(recipe, "tpn", views="1x1")
    assert one == choose_views(recipe, "sda_full", input=256)
    assert choose_views(recipe, "tin") == choose_views(recipe, "tam") == choose_views(recipe, "sda")
    other = load_recipe("tsm_r50", "something_v1", test_short_videos="first_frame")
    assert choose_views(other, "tin_full") == choose_views(recipe, "tin_full") != choose_views(recipe, "tam_full")
    interleaved = {"views": "3x2", "clip_rule": "interleaved"}
    assert choose_views(other, None, **interleaved) == choose_views(recipe, None, **interleaved)
    assert str(choose_views(recipe, "tin_full")) == "resize 256, crop 256"
    assert choose_views(recipe, "tin_full", views="5x4").clips == 4


def test_numbers_of_clips_follow_the_rule():
    assert parse_views("3x2") == (3, 2) and parse_views("10x7", "uniform") == (10, 7)
    assert parse_views("1x36", "combinations") == (1, 36) and parse_views("3x36", None) == (3, 36)
    for views, rule, text in [
        ("3x3", "usual", "views '3x3' must be CROPSxCLIPS with 1, 3, 5 or 10 crops and 1, 2 or 10 clips, as 3x2"),
        ("2x2", "uniform", "and 1 to 100 clips of the clip rule uniform, as 3x2"),
        ("3x101", "random", "1 to 100 clips of the clip rule random"),
        ("3x0", "dense", "1 to 100 clips"),
        ("3x2", "combinations", "and 36 clips of the clip rule combinations, as 3x36"),
        ("3x2", "units", "and 1 clips of the clip rule units, as 3x1"),
        ("3x02", "uniform", "views '3x02' must be"),
        ("3", None, "1, 2 or 10 clips, as 3x2"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(text)):
            parse_views(views, rule)


def test_three_crops():
    def places(width, height, rule):
        crops = transforms.test_crops(width, height, 3, 30, rule)
        assert all(crop[2:] == (30, 30, False) for crop in crops)
        return [(crop.x, crop.y) for crop in crops]

    assert places(53, 30, "grid") == [(0, 0), (20, 0), (10, 0)]
    assert places(53, 30, "long_side") == [(0, 0), (22, 0), (11, 0)]
    assert places(30, 53, "long_side") == [(0, 0), (0, 22), (0, 11)]
    assert places(53, 30, "diagonal") == [(round(11.5), 0), (23, 0), (0, 0)]
    assert places(41, 56, "diagonal") == [(round(5.5), 13), (11, 26), (0, 0)]
    for count in (1, 5, 10):
        assert transforms.test_crops(53, 40, count, 30, "diagonal") == transforms.test_crops(53, 40, count, 30)
    assert [crop.x for crop in transforms.test_crops(320, 256, 3, 256)] == [0, 64, 32]  # V4D's


def by_hand(trained, clips_of, crops, average, order=lambda clip: clip):
    """The scores (N, K) of a test of 40 px crops without resize, from the frames of each video."""
    folder, dataset = trained
    config = load_dataset_config(str(dataset))
    model = build_model("tsm_tiny", 2, 4).eval()
    load_weights(model, folder / "net_runs" / "run" / BEST)
    rows, source = [], config.open_source()
    for i, video in enumerate(read_list(config.val_list, 2)):
        frames = torch.from_numpy(np.stack(source.frames(video, list(range(1, video.num_frames + 1)))))
        frames = frames.permute(0, 3, 1, 2)
        views = [
            frames[[number - 1 for number in order(clip)], :, y : y + 40, x : x + 40]
            for x, y in crops
            for clip in clips_of(video.num_frames, i)
        ]
        with torch.no_grad():
            logits = torch.cat([model(normalise(view[None])) for view in views])
        rows.append((logits.softmax(1) if average == "softmax" else logits).mean(0).numpy())
    return np.stack(rows)


def even_odd(n, _):
    numbers = [int(n / 8 * (x + 0.5)) + 1 for x in range(8)]
    return numbers[::2], numbers[1::2]


def uniform(n, _):
    starts = [k * (n / 4 - 1) / 2 for k in range(3)]
    return [[int(int(start) + n / 4 * x) + 1 for x in range(4)] for start in starts]


LONG_SIDE = [(0, 4), (8, 4), (4, 4)]  # of frames of 48 x 48 px
SMALL = ["--crop", 40, "--input", 40]


@pytest.mark.parametrize("average", ["logits", "softmax"])
@pytest.mark.parametrize(
    ("flags", "clips_of", "crops", "text"),
    [
        (["--clip_rule", "interleaved", "--crop_rule", "long_side", "--views", "3x2"], even_odd, LONG_SIDE,
         "4x3x2 @40 (clips interleaved, crops long_side"),
        (["--clip_rule", "uniform", "--crop_rule", "diagonal", "--views", "3x3"], uniform, [(4, 4), (8, 8), (0, 0)],
         "4x3x3 @40 (clips uniform, crops diagonal"),
    ],
)  # fmt: skip
def test_scores_are_those_computed_by_hand(trained, flags, clips_of, crops, text, average):
    output, file = score(trained, *SMALL, *flags, "--view_average", average, "--batch_size", 5)
    expected = by_hand(trained, clips_of, crops, average)
    np.testing.assert_allclose(file["scores"], expected, rtol=1e-4, atol=1e-6)
    text += ", mean softmax)" if average == "softmax" else ")"
    assert f"tsm_tiny (resize as stored, crop 40): {text}, Top-1 " in output and str(file["protocol"]).endswith(text)
    assert str(file["average"]) == average and np.array_equal(file["members"][0], file["scores"])
    top1 = 100 * (expected.argmax(1) == file["labels"]).mean()
    assert f"Top-1 {top1:.2f}" in output
    backwards = score(trained, *SMALL, *flags, "--view_average", average, "--reverse_frames")[1]["scores"]
    expected = by_hand(trained, clips_of, crops, average, order=lambda clip: clip[::-1])
    np.testing.assert_allclose(backwards, expected, rtol=1e-4, atol=1e-6)


def test_random_clips_are_the_same_for_any_number_of_processes(trained):
    flags = ["--clip_rule", "random", "--views", "1x10", "--view_average", "softmax"]
    output, alone = score(trained, *flags)
    two = score(trained, *flags, "--batch_size", 20, processes=2)[1]
    np.testing.assert_allclose(two["scores"], alone["scores"], rtol=1e-5)
    assert "4x1x10 @48 (clips random, mean softmax), Top-1 " in output
    np.testing.assert_allclose(alone["scores"].sum(1), 1, rtol=1e-5)

    def drawn(n, i):
        generators = [np.random.default_rng((i, k)) for k in range(10)]
        return [[x * (n // 4) + int(r) + 1 for x, r in enumerate(g.integers(n // 4, size=4))] for g in generators]

    config = load_dataset_config(str(trained[1]))
    member = Member("", None, load_recipe("tsm_tiny", "", num_segments=4), None, None, 1.0)
    member.views = choose_views(member.recipe, None, views="1x10", clip_rule="random")
    data = make_test_set(member, read_list(config.val_list, 2), config.open_source(), AS_IT_IS)
    for i in (0, 5):
        found = data.views(i).flatten(0, 1).movedim(1, -1).numpy()
        numbers = sum(drawn(data.videos[i].num_frames, i), [])
        np.testing.assert_array_equal(found, np.stack(data.source.frames(data.videos[i], numbers)))


def test_the_loss_of_probabilities_is_that_of_their_mean(trained):
    folder, dataset = trained
    config = load_dataset_config(str(dataset))
    model = build_model("tsm_tiny", 2, 4).eval()
    load_weights(model, folder / "net_runs" / "run" / BEST)
    recipe = load_recipe("tsm_tiny", "", num_segments=4)
    views = choose_views(recipe, None, views="1x2", view_average="softmax")
    member, videos = Member("", model, recipe, None, views, 1.0), read_list(config.val_list, 2)
    data = make_test_set(member, videos, config.open_source(), AS_IT_IS)
    scores, result, _ = evaluate(model, data, Precision("fp32", torch.device("cpu")), 8, 0, 20, "name")
    labels = [video.label for video in data.videos]
    expected = -np.log(scores[np.arange(len(labels)), labels]).mean()
    assert result["loss"] == pytest.approx(expected, rel=1e-5)


def test_members_of_both_kinds_are_joined_as_probabilities(trained):
    both = f"net_runs/run/{BEST},net_runs/run/{BEST}"
    flags = ["--protocol", "tin_full,sda", "--resize", "none", *SMALL]
    message = error_of(trained, *flags, "--pixels", "faithful", weights=both)
    assert "give --average softmax, or one --view_average for all" in message
    output, file = score(trained, *flags, "--average", "softmax", weights=both)
    first, second = file["members"]
    np.testing.assert_allclose(first.sum(1), 1, rtol=1e-5)
    probabilities = np.exp(second) / np.exp(second).sum(1, keepdims=True)
    np.testing.assert_allclose(file["scores"], (first + probabilities) / 2, rtol=1e-5)
    assert "4x3x2 @40 (clips centres_random, mean softmax) + 4x1x1 @40, Top-1 " in output
    assert "mean softmax weighted equally" in output and str(file["average"]) == "softmax"
    output, file = score(trained, "--views", "1x2", "--view_average", "softmax", weights=both)
    np.testing.assert_allclose(file["scores"], file["members"].mean(0), rtol=1e-6)
    assert "mean softmax weighted equally" in output and str(file["average"]) == "softmax"


def test_one_video_shows_the_mean_probabilities(trained):
    flags = ["--views", "1x2", "--view_average", "softmax"]
    scores = score(trained, *flags)[1]["scores"][0]
    folder = trained[0]
    video = folder / "frames" / "val" / "video 0"
    command = ["test_models.py", "--video", video, "--weights", f"net_runs/run/{BEST}", "--device", "cpu", *flags]
    result = run_inside(*command, cwd=folder)
    assert "4x1x2 @48 (mean softmax) (frames of" in result.stdout, result.stdout
    for label, name in enumerate(NAMES):
        assert f"{100 * scores[label]:6.2f} %  {name}" in result.stdout


def test_old_checkpoints_are_tested_as_before(trained, tmp_path, monkeypatch):
    """A recipe that now says other views is not the recipe of a run that was started before these keys existed."""
    content = torch.load(trained[0] / f"net_runs/run/{BEST}", weights_only=True)
    assert set(BEFORE_KEYS) < set(content["config"]["recipe"]) == set(KEYS)
    for key in BEFORE_KEYS:
        del content["config"]["recipe"][key]
    torch.save(content, tmp_path / "old.pth")
    for path in RECIPES.glob("ts*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    with open(tmp_path / "tsm_tiny.yaml", "a") as file:
        file.write("test_clip_rule: uniform\ntest_views: 3x2\ntest_view_average: softmax\ntest_input: 40\n")
    before = score(trained)[1]
    monkeypatch.setattr("engine.config.RECIPES", tmp_path)
    old = score(trained, weights=tmp_path / "old.pth")[1]
    assert str(old["protocol"]) == str(before["protocol"]) == "tsm_tiny (resize as stored, crop 48, spread): 4x1x1 @48"
    np.testing.assert_array_equal(old["scores"], before["scores"])
    assert score(trained)[1]["protocol"] == before["protocol"]  # a new file holds its own views
    torch.save({key: content[key] for key in ("state_dict", "arch")}, tmp_path / "bare.pth")
    bare = score(trained, "--num_segments", 4, weights=tmp_path / "bare.pth")[1]
    assert str(bare["protocol"]).endswith("4x3x2 @40 (clips uniform, mean softmax)")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol", "tam_ful"], "unknown protocol 'tam_ful'; did you mean tam_full?"),
        (["--clip_rule", "uniform", "--short_videos", "spread"], "--short_videos spread changes nothing, because the"),
        (["--clip_rule", "units"], "clip_rule units is for networks with units, such as v4d_r50"),
        (["--protocol", "v4d"], "tsm_tiny has no units, and the test asks for 10; choose another protocol"),
        (["--units", 3], "tsm_tiny has no units, and the test asks for 3"),
        (["--views", "3x4"], "views '3x4' must be CROPSxCLIPS with 1, 3, 5 or 10 crops and 1, 2 or 10 clips, as 3x2"),
    ],
)
def test_wrong_views_are_one_line(trained, flags, message):
    assert message in error_of(trained, *flags)


def united(size, num_classes, num_segments, units=4, **options):
    """TSM with an option ``units``, which changes nothing."""
    return tsm(size, num_classes, num_segments, **options)


def test_a_network_with_units_is_tested_on_more_units_than_it_was_trained_on(trained, tmp_path, monkeypatch):
    folder, dataset = trained
    (tmp_path / "united_tiny.yaml").write_text("base: tsm_tiny\nunits: 4\ntrain_frames: units\nval_clip_rule: units\n")
    monkeypatch.setattr(
        families, "FAMILIES", [*families.FAMILIES, Family("united", united, sizes=("tiny",), recipes=tmp_path)]
    )
    flags = quick_flags(epochs=1, num_segments=8)
    result = run_inside("main.py", dataset, "united_tiny", "--run", "united", *flags, cwd=folder)
    assert result.returncode == 0 and "units: 4" in result.stdout, result.stdout
    weights, small = f"net_runs/united/{BEST}", ["--resize", "none", "--crop", 48, "--input", 48]
    lines = {
        "v4d": "20x3x1 @48 (clips units), Top-1",
        "v4d_sparse": "20x3x1 @48 (clips sparse_units), Top-1",
        "v4d_slow": "8x3x36 @48 (clips combinations, mean softmax), Top-1",
    }
    for protocol, line in lines.items():
        assert line in score(trained, "--protocol", protocol, *small, weights=weights)[0]
    assert "4x1x1 @48, Top-1" in score(trained, "--units", 2, weights=weights)[0]
    message = error_of(trained, "--protocol", "v4d_slow", "--units", 2, *small, weights=weights)
    assert "clip_rule combinations makes clips of 4 units, and units is 2" in message
    content = torch.load(folder / weights, weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "bare.pth")
    bare = ["--model", "united_tiny", "--num_segments", 8, "--protocol", "v4d", *small]
    assert lines["v4d"] in score(trained, *bare, weights=tmp_path / "bare.pth")[0]
