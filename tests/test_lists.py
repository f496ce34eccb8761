"""Lists, categories and dataset files of users are read, or refused with the right message."""

import os
import pickle
import time

import pytest

from data import DataError, DatasetConfig, Video, VideoList, load_dataset_config, read_list, toy
from data.checks import list_findings, overlap_findings
from data.labels import mirror_pairs, read_categories
from data.video_list import fingerprint
from data.yaml_file import LARGEST_FILE, read_mapping
from engine import loading
from engine.config import RECIPES, ConfigError, load_recipe

DATASET = "name: own\nnum_classes: 2\nroot: frames\ntrain_list: t.txt\nval_list: v.txt\nimage_tmpl: '{:05d}.jpg'\n"


@pytest.fixture
def listed(tmp_path):
    """A function that writes these bytes to a list file and reads it."""

    def read(content: bytes) -> VideoList:
        (tmp_path / "list.txt").write_bytes(content)
        return read_list(tmp_path / "list.txt", 174)

    return read


@pytest.fixture
def dataset(tmp_path):
    """A function that writes this YAML to a dataset file and reads it."""

    def read(text: str):
        (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
        return load_dataset_config(str(tmp_path / "own.yaml"))

    return read


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_a_list(listed):
    videos = listed(b"\xef\xbb\xbfa 8 0\r\nb c 9 1\r\n\r\nd 7 2")
    assert [tuple(video)[:3] for video in videos] == [("a", 8, 0), ("b c", 9, 1), ("d", 7, 2)]
    assert videos[2].where.endswith("list.txt:4")


def test_a_byte_order_mark_is_no_part_of_a_dataset_file_or_of_a_class_name(dataset, tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffa\nb\n", encoding="utf-8")
    config = dataset("\ufeff" + DATASET + "categories: names.txt\n")
    assert (config.name, config.categories) == ("own", ["a", "b"])


def test_only_a_line_feed_ends_a_line(listed, tmp_path):
    """Editors do not count other characters, such as next-line, as the end of a line."""
    assert [video.where[-1] for video in listed("a\u3000b 8 0\nc 8\u20051\n".encode())] == ["1", "2"]
    for separator in "\x85", "\u2028", "\x0c", "\r":
        with pytest.raises(DataError, match=r"list.txt:1: path .* holds a control character"):
            listed(f"a 8 0{separator}b 8 1\nc 8 1\n".encode())
    (tmp_path / "names.txt").write_text("a\u2009b\nc\n", encoding="utf-8")
    assert read_categories(tmp_path / "names.txt", 2) == ["a\u2009b", "c"]


@pytest.mark.parametrize("number", ["1_0", "+8", "٨", "²", "1e2", "0x8", "8.0", "--8"])
def test_a_number_of_a_list_is_plain_digits(listed, number):
    for line in f"a {number} 1", f"a 8 {number}":
        with pytest.raises(DataError, match="list.txt:1: #frames .* must be whole numbers"):
            listed(line.encode())


@pytest.mark.parametrize("frames", ["2147483648", "1" + "0" * 23, "9" * 5000])
def test_a_video_of_more_frames_than_a_32_bit_number_holds_is_refused(listed, frames):
    assert listed(b"a 2147483647 0")[0].num_frames == 2**31 - 1
    with pytest.raises(DataError, match=r"list.txt:1: \d+\S* frames; a video has at most 2147483647") as error:
        listed(f"a {frames} 0".encode())
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{long}", "is not 'path #frames label'"),
        ("{long} 8", "is not 'path #frames label'"),
        ("{long} 8 0", "is longer than 4096 characters"),
        ("a {long} 0", "must be whole numbers"),
        ("a 8 9{digits}", "is not below num_classes"),
        ("a -9{digits} 0", "a video needs at least 1"),
        ("a 8 -9{digits}", "is negative"),
    ],
)
def test_a_long_line_is_not_echoed_whole(listed, line, message):
    with pytest.raises(DataError, match=f"list.txt:1: .*{message}") as error:
        listed(line.format(long="x" * 1_000_000, digits="0" * 1_000_000).encode())
    assert len(str(error.value)) < 400


def test_a_null_byte_in_a_path_is_an_error_of_its_line(listed):
    with pytest.raises(DataError, match=r"list.txt:2: path 'b\\x00c' holds a control character"):
        listed(b"a 8 0\nb\0c 8 1\n")


def test_a_list_or_categories_that_cannot_be_opened_are_errors(tmp_path):
    for name in (".", "a\0b", "x" * 5000, "\ud800"):
        for read in (read_list, read_categories):
            with pytest.raises(DataError, match="cannot") as error:
                read(tmp_path / name, 2)
            assert len(str(error.value)) < 600 and str(error.value).isprintable()


def test_a_pipe_or_device_is_no_list(tmp_path):
    """Without this check, the first waits for a writer for ever, and the second is read until the memory is full."""
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    for name in "pipe.txt", "device.txt":
        for read in (read_list, read_categories):
            with pytest.raises(DataError, match=rf"{name}: cannot .* \(not a regular file but a pipe or a device"):
                read(tmp_path / name, 2)
        with pytest.raises(DataError, match="cannot .* a regular file"):
            read_mapping(tmp_path / name, DataError)


def test_a_long_list_is_read_and_checked_in_seconds(listed):
    content = "".join(f"folder/{i} {i % 50 + 1} {i % 174}\n" for i in range(100_000)).encode()
    start = time.process_time()
    videos = listed(content)
    assert list_findings(videos, "train.txt", 174, None, "root") == []
    assert overlap_findings(videos[::2], videos[1::2], "root") == []
    assert time.process_time() - start < 5  # about 0.6 s; a quadratic search would take an hour


def test_a_list_of_arrays_is_the_python_list_of_its_videos(listed, tmp_path):
    rows = [(f"{'ä' * (i % 7)} 𝄞/ {i}".strip(), 2**31 - 1 - i, 173 - i) for i in range(100)]
    videos = listed("\n\n".join(f"{path} {frames} {label}" for path, frames, label in rows).encode())
    plain = [Video(*row, f"{tmp_path}/list.txt:{2 * i + 1}") for i, row in enumerate(rows)]
    assert list(videos) == [videos[i] for i in range(100)] == [videos[i - 100] for i in range(100)] == plain
    assert all(type(value) in (int, str) for video in (videos[7], next(iter(videos))) for value in video)
    assert (videos[90:3:-7], len(videos), plain[5] in videos) == (plain[90:3:-7], 100, True)
    for place in 100, -101:
        with pytest.raises(IndexError):
            videos[place]
    assert fingerprint(videos) == fingerprint(plain)
    copy = pickle.loads(pickle.dumps(videos))
    assert list(copy) == plain and len(pickle.dumps(videos)) < len(pickle.dumps(plain)) / 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DATASET + "name: two\n", r"own.yaml:7: the key 'name' stands in line 1 too"),
        (DATASET + "categories:\n- {a: 1,\n   a: 2}\n", r"own.yaml:9: the key 'a' stands in line 8 too"),
        ("<<: {name: x}\n<<: {name: y}\n" + DATASET, r"own.yaml:2: the key '<<' stands in line 1 too"),
    ],
)
def test_a_key_that_stands_twice_in_a_dataset_file_is_an_error(dataset, text, message):
    with pytest.raises(DataError, match=message):
        dataset(text)


def test_a_key_that_stands_twice_in_a_recipe_is_an_error(tmp_path, monkeypatch):
    for file in RECIPES.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr("engine.config.RECIPES", tmp_path)
    (tmp_path / "own.yaml").write_text("base: tsm_r50\nvariants:\n  slow:\n    lr: 1\n    epochs: 2\n    lr: 2\n")
    with pytest.raises(ConfigError, match=r"own.yaml:6: the key 'lr' stands in line 4 too"):
        load_recipe("own", "toy_something")
    (tmp_path / "own.yaml").write_text("base: tsm_r50\n5: 1\n")
    with pytest.raises(ConfigError, match=r"own.yaml:2: the key '5' is not text"):
        load_recipe("own", "toy_something")


def test_a_merged_key_may_be_overridden(dataset):
    assert dataset("<<: &usual {name: theirs, num_classes: 2}\n" + DATASET).name == "own"
    with pytest.raises(DataError, match="categories must be a file name or a list"):  # merged twice, each key once
        dataset(DATASET + "categories: [&a {x: 1}, &b {<<: *a, x: 2}, {<<: [*a, *b], x: 3}]\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("categories: 2001-99-99", r":7: '2001-99-99' cannot be read as timestamp"),
        ("categories: !!timestamp x", r":7: 'x' cannot be read as timestamp"),
        ("categories: !!bool x", r":7: 'x' cannot be read as bool"),
        ("categories: !!int ''", r":7: '' cannot be read as int"),
        ("categories: " + "9" * 5000, r":7: '9+\.\.\.9+' cannot be read as int"),
        ("categories: 1" + ":59" * 500 + ".5", r":7: \S* cannot be read as float"),
        ("categories: !!python/object/apply:os.abort []", r":7: not a YAML file \(could not determine a constructor"),
        ('categories: "\\UFFFFFFFF"', r": not a YAML file \("),
        ("categories: \0", r": not a YAML file \(unacceptable character"),
        ("categories: " + "[" * 600, r": not a YAML file \(nested too deeply\)"),
        ("categories: [", r":8: not a YAML file \("),
        ("? [a]\n: 1", r":7: the key \(a sequence\) is not text"),
        ("yes: 1", r":7: the key 'yes' is not text; write it in quotes"),
    ],
)
def test_whatever_yaml_cannot_be_read_is_an_error_of_its_line(dataset, line, message):
    with pytest.raises(DataError, match="own.yaml" + message) as error:
        dataset(DATASET + line + "\n")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_aliases_of_aliases_neither_fill_a_message_nor_the_memory(dataset):
    def laughs(first: str, line: str) -> str:
        lines = [f"a{i}: &a{i} {line.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, 12)]
        return "\n".join(["a0: &a0 " + first, *lines])

    nested = laughs("[x, x]", "[{}]").replace("\n", "\n  ")
    with pytest.raises(DataError, match="categories must be a file name or a list of names in quotes, not ") as error:
        dataset(f"{DATASET}categories:\n  {nested}\n")
    assert len(str(error.value)) < 400
    with pytest.raises(DataError, match="more than 1,000,000 keys, with those that '<<' merges"):
        dataset(laughs("{x: 1}", "{{<<: [{}]}}"))


def test_a_dataset_file_of_megabytes_is_refused_at_once(dataset):
    with pytest.raises(DataError, match="own.yaml: has more than 1,000,000 bytes"):
        dataset("#" * (LARGEST_FILE + 1))


@pytest.mark.parametrize("classes", ["0", "-1", "1000001", "10000000000", "0x" + "f" * 5000])
def test_num_classes_has_a_range(dataset, classes):
    assert dataset(DATASET.replace(": 2", ": 1000000")).num_classes == 1_000_000
    with pytest.raises(DataError, match=r"own.yaml: num_classes is .*, must be from 1 to 1000000") as error:
        dataset(DATASET.replace(": 2", f": {classes}"))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("key", ["name", "root", "train_list", "val_list", "image_tmpl", "categories"])
def test_names_and_paths_are_not_empty_and_of_one_line(dataset, key):
    others = "".join(line + "\n" for line in DATASET.splitlines() if not line.startswith(key))
    wrong = {'""': "is empty", r'"a\0b"': "control character", r'"a\nb"': "control character"}
    wrong |= {r'"\ud800"': "control character", "x" * 5000: "longer than 4096 characters"}
    for value, message in wrong.items():
        with pytest.raises(DataError, match=f"own.yaml: {key} '.* ?{message}") as error:
            dataset(f"{others}{key}: {value}\n")
        assert len(str(error.value)) < 400


def test_a_folder_or_nothing_is_no_dataset(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    for name in (str(tmp_path / "folder.yaml"), "x" * 5000 + ".yaml", "a\0b.yaml", "x" * 5000):
        with pytest.raises(DataError, match="no dataset '") as error:
            load_dataset_config(name)
        assert len(str(error.value)) < 600 and "\n" not in str(error.value)
        assert ("there is no such file" in str(error.value)) == name.endswith(".yaml")


@pytest.mark.parametrize("field", ["{:09999999999d}", "{:021d}", "{0.__class__}", "{0!r}", "{:{}}", "{:x}", "{:>5}"])
def test_a_template_holds_frame_numbers_only(dataset, field):
    assert dataset(DATASET.replace("{:05d}", "{:020d}")).image_tmpl == "{:020d}.jpg"
    with pytest.raises(DataError, match="own.yaml: image_tmpl .* must hold one frame number of at most 20 digits"):
        dataset(DATASET.replace("{:05d}", field))


def test_the_toy_set_is_drawn_for_its_own_file_only(dataset, monkeypatch):
    monkeypatch.setattr(toy, "draw_once", lambda *_: pytest.fail("drawn"))
    assert dataset(DATASET.replace("own", "toy_something")).name == "toy_something"


def test_a_wrong_number_of_class_names_is_an_error_of_the_dataset_file(dataset):
    with pytest.raises(
        DataError, match=r"own.yaml: categories: 3 names for num_classes 2; write one a label, in order"
    ):
        dataset(DATASET + "categories: [a, b, c]\n")


def test_class_names_are_of_one_line():
    with pytest.raises(DataError, match=r"categories: 'a\\nb' holds a control character"):
        read_categories(["a\nb", "c"], 2)
    with pytest.raises(DataError, match="'x+...x+' stands there twice") as error:
        read_categories(["x" * 5000] * 2, 2)
    assert len(str(error.value)) < 200


def test_a_name_with_a_letter_that_only_looks_like_a_mirror_word_is_left_alone():
    """If case is ignored, Python's regular expressions treat a long s or a dotless i as s or i."""
    assert mirror_pairs(["leftward\u017f", "r\u0131ght", "Left", "RIGHT"]) == {2: 3, 3: 2}


def videos(text: str, file: str = "train.txt") -> list[Video]:
    """``a:3 b:4`` as a list of two videos and their labels."""
    words = [word.split(":") for word in text.split()]
    return [Video(path, 8, int(label), f"{file}:{line}") for line, (path, label) in enumerate(words, start=1)]


def findings(text: str, num_classes: int = 1, categories: list[str] | None = None) -> list[tuple[str, str]]:
    return list_findings(videos(text), "train.txt", num_classes, categories, "root")


def config(num_classes: int) -> DatasetConfig:
    return DatasetConfig("own", num_classes, "root", "train.txt", "val.txt", "{}.jpg")


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """A list that collects the lines that are logged."""
    lines: list[str] = []
    monkeypatch.setattr(loading, "info", lines.append)
    return lines


def test_an_ordinary_list_has_no_findings():
    assert findings("a:0 b:1 c:0", 2) == []
    assert overlap_findings(videos("a:0 b:1"), videos("c:0", "val.txt"), "root") == []


def test_videos_that_stand_twice_are_one_line():
    one = "train.txt: 1 line repeats a video under the same label; the first: 'a' in lines 1 and 3"
    assert findings("a:0 b:0 a:0") == [("repeated", one)]
    absolute = os.path.abspath("root/a")
    ((_, line),) = list_findings(
        videos(f"a:0 b:0 ./a:0 x/../b:0 {absolute}:0"), "t.txt", 1, None, os.path.abspath("root")
    )
    assert line == "t.txt: 3 lines repeat a video under the same label; the first: './a' in lines 1 and 3"


def test_a_video_under_two_labels_is_an_error_unless_allowed(said):
    expected = (
        "train.txt: 2 lines give a video another label than an earlier line; the first: 'a' has label 0 in line 1 "
        "and label 1 in line 3"
    )
    assert findings("a:0 b:1 a:1 b:0", 2) == [("two_labels", expected)]
    listed = videos("a:0 b:1 a:1 b:0")
    with pytest.raises(DataError) as error:
        loading.check_list(config(2), listed, "train.txt", allow_two_labels=False)
    assert str(error.value) == f"{expected}; correct the list, or allow it with --allow_two_labels" and said == []
    loading.check_list(config(2), listed, "train.txt", allow_two_labels=True)
    assert said == [expected]


def test_classes_without_a_video_are_one_line():
    assert findings("a:0 b:2", 3) == [("empty_classes", "train.txt: 1 of 3 classes has no video: 1")]
    names = ["zero", "one", "two", "three" * 50]
    ((_, line),) = findings("a:0", 4, names)
    assert line.startswith("train.txt: 3 of 4 classes have no video: 1 (one), 2 (two), 3 (three") and len(line) < 150
    ((_, line),) = findings("a:0", 1_000_000)
    assert line == "train.txt: 999999 of 1000000 classes have no video: 1, 2, 3, 4, 5, ..."


def test_videos_of_both_lists_are_an_error_unless_allowed(said):
    train, val = videos("a:0 b:1 c:0"), videos("d:0 ./c:0 b:1", "val.txt")
    expected = "2 validation videos are training videos too; the first: './c' in train.txt:3 and val.txt:2"
    assert overlap_findings(train, val, "root") == [("overlap", expected)]
    with pytest.raises(DataError) as error:
        loading.check_lists(config(2), train, val, allow_overlap=False, allow_two_labels=True)
    assert str(error.value) == f"{expected}; correct the lists, or allow it with --allow_overlap" and said == []
    loading.check_lists(config(2), train, val, allow_overlap=True, allow_two_labels=False)
    assert said == [expected]
    ((_, line),) = overlap_findings(train, videos("a:0"), "root")
    assert line.startswith("1 validation video is a training video too; the first: 'a'")
