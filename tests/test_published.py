"""Published results: the rows, the loader's errors, what counts as the same test, and the line that ends a test."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from toy_run import make_dataset, run_inside

from data import list_datasets
from data.sampling import AS_IT_IS, FrameOrder
from engine import published
from engine.config import ConfigError, load_recipe, parse_size
from engine.log_reader import read_log
from engine.protocols import GEOMETRY, PROTOCOLS, choose_views
from engine.published import FinishedTest, Published, Row, load_published, published_line
from engine.testing import Member
from models import build_model

ROWS = load_published().rows

# source (its beginning), system, dataset, frames x crops x clips @ input -> figure, M parameters, G multiply-adds
FACTS = [
    ("RSA repository, README", "RSANet", "something_v1", "16x1x1 @224", "54.0 / 81.1", None, None),
    ("RSA repository, README", "RSANet", "something_v2", "16x1x1 @224", "66.0 / 89.9", None, None),
    ("RSA repository, logs", "RSANet", "something_v1", "16x1x1 @224", "53.986 / 81.137", 22.034, 71.774),
    ("Papers with Code", "RSANet", "something_v1", "8x1x1 @224", "51.9 / 79.6", None, None),
    ("Papers with Code", "RSANet", "something_v1", "(8+16)x?x2 @?", "56.1 / 82.8", None, None),
    ("hyper.ai", "RSANet", "something_v2", "(8+16)x?x2 @?", "- / 91.1", None, None),
    ("StructViT", "TDN", "something_v2", "16x1x1 @?", "65.3 / 89.5", None, 72),
    ("StructViT", "RSANet", "finegym99", "?x?x? @?", "mean class 86.4", None, None),
    ("StructViT", "TimeSformer-L", "diving48", "?x?x? @?", "81.0", None, None),
    ("SDA repository, README", "GST", "something_v2", "16x1x1 @224", "62.6", 21.0, 59.0),
    ("SDA repository, README", "V4D", "something_v1", "8x?x? @?", "50.4", None, None),
    ("SDA repository, README", "TSM+TPN", "something_v1", "8x1x1 @?", "49", 24.3, 33.0),
    ("SDA repository, README", "TIN", "something_v2", "16x1x1 @224", "60.1", 24.3, 67.0),
    ("SDA repository, README", "TEINet", "something_v1", "8x1x1 @?", "47.4", 30.4, 33.0),
    ("SDA repository, README", "RubiksNet", "something_v2", "8x3x2 @224", "61.7", None, None),
    ("SDA repository, README", "TAM", "something_v1", "16x1x1 @224", "47.6", 25.6, 66.0),
    ("SDA repository, README", "TEA", "something_v1", "16x3x10 @256", "52.3", 24.5, 70.0),
    ("SDA repository, README", "STM", "something_v2", "16x3x10 @224", "64.2", 24.0, 66.5),
    ("SDA repository, README", "SmallBig", "something_v2", "16x3x2 @256", "63.8", None, 114),
    ("SDA repository, README", "TSN", "something_v2", "8x1x1 @224", "30", 23.9, 32.9),
    ("SDA repository, README", "SDA-TSN", "something_v1", "8x3x2 @224", "49.5", 25.8, 33.9),
    ("SDA repository, README", "SDA-TSM", "something_v2", "16x3x2 @224", "65.4", 25.8, 67.8),
    ("SDA repository, README", "SDA-TSM_En", "something_v1", "(16+8)x3x2 @224", "54.8", None, 101.7),
    ("SDA repository, README", "TSM", "something_v1", "16x1x2 @224", "48.4", 23.9, 65.8),
    ("SDA repository, README", "SDA-TSM", "diving48", "8x?x? @?", "80.2 / 97.3", None, None),
    ("SDA repository, README", "SDA-TSN", "epic_kitchens_55_noun", "8x?x? @?", "24.6", None, None),
    ("TAM repository", "TAM", "something_v2", "8x3x2 @256", "62.7 / 88.0", None, None),
    ("RubiksNet repository", "RubiksNet-Large", "something_v2", "8x3x2 @224", "61.73 / 87.3", 8.5, 15.8),
    ("MMAction2", "TIN (original code, run by MMAction2)", "something_v1", "8x?x? @?", "44.04 / 72.72", None, None),
    ("TPN repository", "TSM+TPN", "something_v2", "8x3x2 @256", "64.7", None, None),
]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: " ".join(map(str, fact[1:4])))
def test_rows_hold_what_the_sources_print(fact):
    source, system, dataset, views, *figures = fact
    rows = [row for row in ROWS if (row.system, row.dataset, row.views) == (system, dataset, views)]
    rows = [row for row in rows if row.source.startswith(source)]
    assert [[row.figure, row.params, row.gmacs] for row in rows] == [figures]


def test_the_table_of_sda_is_complete():
    """16 + 17 rows on Something-Something V1. V4D and TEA have none on V2."""
    count = {
        name: sum(row.dataset == name for row in ROWS if row.source.startswith("SDA ")) for name in list_datasets()
    }
    assert count["something_v1"] == 33 and count["something_v2"] == 30
    assert [count[name] for name in ("diving48", "epic_kitchens_55_verb", "epic_kitchens_55_noun")] == [6, 6, 6]


def test_sizes_of_a_row_are_those_of_its_protocol():
    checked = [(row, PROTOCOLS[name].settings) for row in ROWS for name in row.protocol]
    assert len(checked) > 60
    for row, protocol in checked:
        assert row.input in (None, protocol["input"]), row
        assert row.resize in (None, parse_size(protocol["resize"])), row


GOOD = {"source": "a paper", "system": "X", "dataset": "something_v1", "top1": 50.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 2}, "paper, row 2: unknown key 'clip'; did you mean clips"),
        ({"dataset": "somthing_v1"}, "row 2: unknown dataset 'somthing_v1'; did you mean something_v1"),
        ({"model": "tsm_r5"}, "row 2: unknown model 'tsm_r5'; did you mean tsm_r50"),
        ({"protocol": ["sda", "sda_ful"]}, "row 2: unknown protocol 'sda_ful'; did you mean sda_full"),
        ({"dataset": None}, "row 2: lacks the key 'dataset'"),
        ({"top1": 140.0}, "row 2: top1 is 140.0; it must be from 0 to 100 percent"),
        ({"top1": "50"}, "row 2: top1 is '50', not a float"),
        ({"top1": None}, "row 2: has no figure of something_v1; give top1, top5 or mean_class"),
        ({"top1": [1.0, 2.0]}, r"row 2: top1 is \[1.0, 2.0\], datasets are 1; give one for each"),
        ({"crops": 0}, "row 2: crops is 0; it must be at least 1"),
        ({"frames": [8, "16"]}, "row 2: frames is '16', not a int"),
        ({"system": 3}, "row 2: system is 3, not a str"),
        ({"resize": "axb"}, "row 2: size 'axb' is neither a short side"),
        ("text", "row 2: 'text' is no row"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path, change, message):
    file = tmp_path / "rows.yaml"
    wrong = GOOD | change if isinstance(change, dict) else change
    file.write_text(yaml.safe_dump({"paper": {"rows": [GOOD, wrong]}}))
    with pytest.raises(ConfigError, match=message) as error:
        load_published(file)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("paper: 3", "paper is 3; a table needs 'rows:'"),
        ("videos: 3", "videos is 3; write a line 'dataset: number'"),
        ("videos: {something_v3: 3}", "unknown dataset in videos 'something_v3'; did you mean something_v"),
        ("videos: {something_v1: many}", "videos is 'many', not a int"),
        ("- a list", "must hold 'key: value' lines"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, content, message):
    file = tmp_path / "rows.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_published(file)


def test_what_a_table_says_holds_for_its_rows(tmp_path):
    file = tmp_path / "rows.yaml"
    table = {"source": "s", "system": "X", "dataset": ["something_v1", "something_v2"], "clips": 1, "protocol": "sda"}
    rows = [{"top1": [40, None], "top5": [None, 70.5]}, {"clips": 2, "top1": [41.0, 42.0], "frames": [8, 16]}]
    file.write_text(yaml.safe_dump({"videos": {"diving48": 5}, "t": table | {"rows": rows}}))
    found = load_published(file)
    assert found.videos == {"diving48": 5}
    assert [(row.dataset, row.figure, row.clips) for row in found.rows] == [
        ("something_v1", "40", 1),
        ("something_v2", "- / 70.5", 1),
        ("something_v1", "41.0", 2),
        ("something_v2", "42.0", 2),
    ]
    assert found.rows[0].protocol == ("sda",) and found.rows[2].views == "(8+16)x?x2 @?"


def finished(
    model: str = "sda_tsm_r50",
    dataset: str = "something_v1",
    frames: tuple[int, ...] = (8,),
    protocol: str | None = None,
    views: str | None = None,
    shares: tuple[float, ...] = (1.0, 1.0),
    options: dict | None = None,
    modality: str = "RGB",
    **changes: object,
) -> FinishedTest:
    """A test of 11,522 videos with Top-1 50, Top-5 80 and mean class accuracy 45."""
    members = []
    for t, share in zip(frames, shares, strict=False):
        recipe = load_recipe(model, dataset, num_segments=t, modality=modality)
        recipe = replace(recipe, model_options=recipe.model_options | (options or {}))
        geometry = {"views": views} | {key: changes.pop(key) for key in GEOMETRY if key in changes}
        chosen = choose_views(recipe, protocol, **geometry)
        members.append(Member("w.pth", SimpleNamespace(arch=model), recipe, None, chosen, share))
    usual = FinishedTest(
        dataset, members, "logits", AS_IT_IS, None, 11522, 11522, {"top1": 50, "top5": 80, "class_accuracy": 45}
    )
    return replace(usual, **changes)


def line(**settings: object) -> str | None:
    return published_line(load_published(), finished(**settings))


def test_the_same_test_gets_a_difference():
    assert line(protocol="sda") == (
        "published: 48.6 (SDA repository, README, Something-Something) for 8x1x1 @224 by sda_full or sda; "
        "the difference is +1.40 percentage points"
    )
    assert line(model="rsanet_r50", frames=(16,)) == (
        "published: 54.0 / 81.1 (RSA repository, README) for 16x1x1 @224 by rsa; "
        "the difference is -4.00 / -1.10 percentage points"
    )
    for settings in ({"views": "3x2", "pixels": "fast"}, {"views": "1x2"}, {"frames": (16,), "views": "3x2"}):
        assert "the difference is " in line(**settings), settings
    assert "47.5 (" in line(model="sda_tsn_r50", protocol="sda_full")


V2 = {"dataset": "something_v2", "listed": 24777, "scored": 24777}


@pytest.mark.parametrize(
    ("settings", "same", "other"),
    [
        # the size of the crops and the rule of the clips
        ({"model": "tanet_r50", **V2}, "tam_full", {"protocol": "sda_full", "views": "3x2"}),
        # the rule of the clips, and the average over views
        ({"model": "tea_r50"}, "tea_full", {"protocol": "stm"}),
        ({"model": "stm_r50", "frames": (16,), **V2}, "stm", {"protocol": "tea_full"}),
        # the places of the crops
        ({"model": "smallbig_r50"}, "smallbig", {"protocol": "smallbig", "crop_rule": "grid"}),
        ({"model": "tsm_tpn_r50", **V2}, "tpn", {"protocol": "tpn", "clip_rule": "usual"}),
        # the number of views; the rule for short videos
        ({"model": "rubiksnet_large", **V2}, "rubiksnet_full", {"protocol": "rubiksnet_full", "views": "3x1"}),
        ({"model": "gst_large_r50"}, "gst", {"protocol": "sda"}),
    ],
)
def test_each_protocol_is_told_from_its_neighbours(settings, same, other):
    assert line(protocol=same, **settings).endswith(" percentage points")
    assert line(**settings | other).endswith("so they do not compare")


@pytest.mark.parametrize(
    ("settings", "row", "here"),
    [
        # crops and clips
        ({"views": "5x2"}, "51.1", "8x5x2 @224 (resize 256, crop 256, spread)"),
        # frames; the nearest row has the nearest number
        ({"frames": (11,)}, "48.6", "11x1x1 @224 (resize 256, crop 256, spread)"),
        ({"frames": (15,)}, "51.3", "15x1x1 @224 (resize 256, crop 256, spread)"),
        ({"frames": (15,), "views": "3x2"}, "52.8", "15x3x2 @224 (resize 256, crop 256, spread)"),
        # the frames' size, the crop and the rule for short videos
        ({"protocol": "rsa"}, "48.6", "8x1x1 @224 (resize 240x320, crop 224, first_frame)"),
        ({"crop": 240}, "48.6", "8x1x1 @224 (resize 256, crop 240, spread)"),
        ({"model": "rsanet_r50", "frames": (16,), "protocol": "sda"}, "54.0 / 81.1", "(resize 256, crop 224, spread)"),
        ({"model": "rsanet_r50", "frames": (16,), "views": "1x2"}, "54.0 / 81.1", "16x1x2 @224"),
    ],
)
def test_another_protocol_is_named_and_not_compared(settings, row, here):
    text = line(**settings)
    assert text.startswith(f"published: {row} (") and text.endswith("), so they do not compare"), text
    assert here in text.split("; this test is ")[1] and "difference" not in text


def test_what_the_source_leaves_open_is_said():
    text = line(dataset="diving48", listed=1970, scored=1970)
    assert text == (
        "published: 80.2 / 97.3 (SDA repository, README, Diving48) for 8x?x? @?; this test is 8x1x1 @224 "
        "(resize 256, crop 256, spread), and the source does not tell its whole test, so they may not compare"
    )
    assert line(dataset="diving48", frames=(16,), listed=1970, scored=1970).endswith("), so they do not compare")


def test_ensembles_are_compared_with_ensembles_alone():
    two = {"frames": (8, 16), "views": "3x2"}
    assert line(**two).startswith("published: 54.8 (")
    assert line(**two).endswith("the difference is -4.80 percentage points")
    assert line(frames=(16, 8), views="3x2") == line(**two)
    for change in ({"frames": (8, 8)}, {"views": "1x1"}, {"average": "softmax"}, {"shares": (2.0, 1.0)}):
        text = line(**(two | change))
        assert text.startswith("published: 54.8 (") and text.endswith("so they do not compare"), change
    assert line(model="tsm_r50", frames=(8, 16), views="1x2") is None  # no ensemble of TSM is published
    mixed = finished(**two)
    other = replace(mixed, members=[mixed.members[0], finished(model="tsm_r50", views="3x2").members[0]])
    assert published_line(load_published(), other) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"other_list": "few.txt"}, "this test is of the list few.txt"),
        ({"scored": 11520}, "this test leaves out 2 of 11,522 videos"),
        ({"listed": 1000, "scored": 1000}, "this list has 1,000 videos, the official one 11,522"),
        ({"order": FrameOrder("reverse")}, "this test has its frames reversed"),
        ({"options": {"sda_segments": 4}}, "w.pth has the model_options {'sda_segments': 4}"),
        ({"modality": "RGBDiff"}, "w.pth sees RGBDiff"),
    ],
)
def test_another_task_is_not_compared(change, reason):
    text = line(**change)
    assert text.startswith("published: 48.6 (") and text.endswith(
        f" by sda_full or sda; {reason}, so they do not compare"
    )


def test_mean_class_accuracy_is_compared_with_its_own_kind():
    row = Row("s", "X", "finegym99", "tsm_r50", (8,), crops=1, clips=1, protocol=("sda",), mean_class=44.5)
    text = published_line(Published([row], {}), finished(model="tsm_r50", dataset="finegym99"))
    assert text == "published: mean class 44.5 (s) for 8x1x1 @? by sda; the difference is +0.50 percentage points"


def test_a_row_with_top1_comes_first():
    """Of the rows of a test, the one with the most figures is named, even if another stands before it."""
    rows = [Row("s", "X", "something_v1", "tsm_r50", (8,), crops=1, clips=1, protocol=("sda",)) for _ in range(3)]
    figures = {"top5": 1.0}, {"top1": 2.0}, {"top1": 3.0, "top5": 4.0}
    rows = [replace(row, **value) for row, value in zip(rows, figures, strict=True)]
    settings = finished(model="tsm_r50")
    assert "published: 3.0 / 4.0 (s)" in published_line(Published(rows, {}), settings)
    assert "published: 2.0 (s)" in published_line(Published(rows[:2], {}), settings)
    assert published_line(Published(rows[:1], {}), settings).endswith("the difference is - / +79.00 percentage points")


def test_nothing_is_said_of_other_sets_and_models():
    assert line(dataset="toy_something") is None and line(model="tsm_tiny") is None
    assert line(model="rsanet_r50", dataset="hmdb51") is None


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with a small dataset that is called something_v1, untrained weights, and rows for tsm_tiny."""
    folder = tmp_path_factory.mktemp("toy")
    dataset = make_dataset(folder)
    dataset.write_text(dataset.read_text().replace("name: small", "name: something_v1"))
    torch.save({"state_dict": build_model("tsm_tiny", 2, 4).state_dict()}, folder / "w.pth")
    row = {"system": "X", "model": "tsm_tiny", "frames": 4, "crops": 1, "clips": 1, "protocol": "sda", "top1": 40.5}
    row |= {"source": "a paper, Table 2", "dataset": "something_v1", "input": 224}
    content = {"videos": {"something_v1": 8}, "paper": {"rows": [row]}}
    (folder / "rows.yaml").write_text(yaml.safe_dump(content))
    return folder, dataset


def last_line(toy, *flags: object) -> str:
    folder, dataset = toy
    command = ["test_models.py", dataset, "--weights", "w.pth", "--model", "tsm_tiny", "--num_segments", 4]
    result = run_inside(*command, "--device", "cpu", "--workers", 0, *flags, cwd=folder)
    assert result.returncode == 0, result.stdout
    (folder / "test.log").write_text(result.stdout)
    return result.stdout.strip().splitlines()[-1]


def test_a_test_ends_with_the_published_figure(toy, monkeypatch):
    folder, _ = toy
    monkeypatch.setattr(published, "FILE", folder / "rows.yaml")
    text = last_line(toy, "--protocol", "sda")
    log = (folder / "test.log").read_text()
    top1 = float(re.search(r"8 videos, .*, Top-1 (\S+),", log)[1])
    assert re.fullmatch(
        r"\[.*\]\[INFO\] test_models.py: *\d+: published: 40.5 \(a paper, Table 2\) for 4x1x1 @224 by sda; "
        rf"the difference is \{top1 - 40.5:+.2f} percentage points",
        text,
    ), text
    with_line = read_log(folder / "test.log")
    (folder / "test.log").write_text(log.replace(text, ""))
    assert with_line[0]["val_top1"] == pytest.approx(top1, abs=0.01)
    assert repr(with_line) == repr(read_log(folder / "test.log"))  # as text, because one value is nan


def test_a_test_of_something_else_says_why_it_does_not_compare(toy, monkeypatch):
    folder, _ = toy
    monkeypatch.setattr(published, "FILE", folder / "rows.yaml")
    lines = (folder / "val.txt").read_text().splitlines()
    (folder / "six.txt").write_text("\n".join(lines[:6]))
    cases = {
        (): "this test is 4x1x1 @48 (resize as stored, crop 48, spread), so they do not compare",
        ("--list", "six.txt"): "this test is of the list six.txt, so they do not compare",
        ("--reverse_frames",): "this test has its frames reversed, so they do not compare",
        ("--list", "val.txt", "--protocol", "sda"): "percentage points",
    }
    for flags, end in cases.items():
        text = last_line(toy, *flags)
        assert "published: 40.5 (a paper, Table 2) for 4x1x1 @224 by sda; " in text and text.endswith(end), text
    lines[1] = "val/gone 24 1"
    (folder / "val.txt").write_text("\n".join(lines))
    text = last_line(toy, "--on_bad_video", "skip", "--protocol", "sda")
    assert text.endswith("by sda; this test leaves out 1 of 8 videos, so they do not compare")
