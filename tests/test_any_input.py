"""A list or dataset file of any content is either read or refused with one short line. No other error occurs."""

import string
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import event, example, given
from hypothesis import strategies as st

from data import DataError, DatasetConfig, load_dataset_config, read_list
from data.checks import list_findings, overlap_findings
from data.video_list import MOST_FRAMES

LIST = "a folder/video 12 0\n/absolute/b 7 1\n\nc 1 1\n"
DATASET = {
    "name": "own",
    "num_classes": "2",
    "root": "frames",
    "train_list": "train.txt",
    "val_list": "/val.txt",
    "image_tmpl": "'{:05d}.jpg'",
    "source": "folder",
    "categories": "[left, right]",
}
TIMES = st.sampled_from([1, 1, 1, 2, 4])  # rarely many, because one odd value hides another
VALID = "".join(f"{key}: {value}\n" for key, value in DATASET.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all examples. Each example overwrites the file."""
    return tmp_path_factory.mktemp("any_input")


def result_or_refusal(read: Callable[[], object]) -> object | None:
    """The result of ``read``, or ``None`` if it refuses the input with the right error."""
    try:
        result = read()
        event("read")  # pytest --hypothesis-show-statistics shows how often
        return result
    except DataError as error:
        event("refused")
        message = str(error)
        assert message.splitlines() == [message] and len(message) < 2000 and message.isprintable(), message
        return None


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """The valid file with a few parts replaced, by random bytes or by other parts of the file."""
    content = valid
    for _ in range(draw(TIMES)):
        start = draw(st.integers(0, len(content)))
        end = min(start + draw(st.integers(0, 3) | st.integers(0, 30)), len(content))
        begin = draw(st.integers(0, len(content)))
        put = draw(st.binary(max_size=8) | st.just(content[begin : begin + 30]))
        content = content[:start] + put + content[end:]
    return content


# -------------------------------------------------------------------------------------------------------------- lists

WORDS = st.text(max_size=12) | st.sampled_from(
    [*"\0\t\r\x1c\x85\u2028\ufeff-٣²", "", "-0", "+1", "1_0", "1e3", "nan", "0x1", "a b", "../a", "\ud800"]
)
NUMBERS = st.integers().map(str) | st.integers(0, 3).map(str) | st.sampled_from(["2147483647", "2147483648"])
LONG = st.builds(lambda word, times: word * times, st.sampled_from(["9", "-9", "x", "a/", "\0", "é"]), st.just(5000))
PARTS = WORDS | NUMBERS | LONG


@st.composite
def nearly_lists(draw: st.DrawFn) -> bytes:
    """Good lines with one or several odd parts."""
    lines = [[f"video {i}", str(1 + i), str(i % 2)] for i in range(draw(st.integers(1, 4)))]
    for _ in range(draw(TIMES)):
        lines[draw(st.integers(0, len(lines) - 1))][draw(st.integers(0, 2))] = draw(PARTS)
    ends = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\u2028"]))
    between = draw(st.sampled_from([" ", "  ", "\t", "\u3000"]))
    text = ends.join(between.join(parts) for parts in lines)
    return (draw(st.sampled_from(["", "\ufeff"])) + text).encode("utf-8", "surrogatepass")


@given(content=st.binary(max_size=300) | damaged(LIST.encode()) | nearly_lists(), num_classes=st.integers(1, 3))
@example(content=b"a 1" + b"0" * 23 + b" 0", num_classes=2)
@example(content=b"\xef\xbb\xbfa 8 0", num_classes=2)
def test_any_bytes_are_a_list_or_an_error_of_one_line(folder, content, num_classes):
    file = folder / "list.txt"
    file.write_bytes(content)
    videos = result_or_refusal(lambda: read_list(file, num_classes))
    if videos is None:
        return
    lines = content.removeprefix(b"\xef\xbb\xbf").decode().split("\n")
    assert len(videos) == sum(bool(line.strip()) for line in lines)
    for video in videos:
        written = lines[int(video.where.rpartition(":")[2]) - 1].strip()
        path, frames, label = written.rsplit(maxsplit=2)
        assert (video.path, video.num_frames, video.label) == (path, int(frames), int(label))
        assert 1 <= video.num_frames <= MOST_FRAMES and 0 <= video.label < num_classes and "\0" not in path
    found = list_findings(videos, str(file), num_classes, None, "root") + overlap_findings(videos, videos, "root")
    assert all(text.isprintable() and len(text) < 2000 for _, text in found)


# ------------------------------------------------------------------------------------------------------ dataset files

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=9)
SCALARS |= st.dates() | st.datetimes()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
DUMPED = VALUES.map(lambda value: yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n"))
TEXTS = st.text(max_size=20).map(lambda text: yaml.safe_dump(text, width=10**6).removesuffix("...\n"))
FIELDS = ["{}", "{:05d}", "{0}", "{1:3}", "{:021d}", "{!r}", "{0.real}", "{[0]}", "{:{}}", "{:09999999999d}"]
TEMPLATES = st.lists(st.sampled_from([*FIELDS[:4], *FIELDS, "a", ".jpg", "{{", "}", "/"]), max_size=4)
NAMES = st.sampled_from(
    ["left", "right", "Left", "leftward\u017f", "r\u0131ght", "LEFT left", "right left", "up", '""']
)
# key -> values, most of them good
NEAR = dict.fromkeys(["name", "root", "train_list", "val_list"], TEXTS) | {
    "num_classes": st.integers(-1, 3).map(str) | st.integers().map(str),
    "image_tmpl": TEMPLATES.map(lambda parts: f"'{''.join(parts)}'"),
    "source": st.sampled_from(["folder", "video", "vidoe"]),
    "categories": st.lists(NAMES, min_size=2, max_size=3).map(lambda names: f"[{', '.join(names)}]"),
}
TAGS = st.sampled_from(
    ["!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!!binary", "!!set", "!!omap", "!!x", "!x"]
)
TAGGED = st.builds("{} {}".format, TAGS, DUMPED | st.text(string.ascii_letters, max_size=5))
SNIPPETS = """
2001-99-99|0b|0x|0o9|1:99|1:59:59|.inf|-.nan|0x1F|1_000|=|<<|~|?|-|!|!!|!x y|&a|*a|&a [*a]|&a {b: *a}|*b|[|{|]|"|'|,
{<<: 1}|{<<: {a: 1}}|{<<: [{a: 1}, {a: 2}]}|{<<: &a {x: 1}, <<: *a}|{a: 1, a: 2}|{? [a] : 1}|{[a]: 1}|{{a: 1}: 1}|yes
"\\U00110000"|"\\UFFFFFFFF"|"\\ud800"|"\\0"|"\\n"|"\\x85"|"\\u2028"|null|---|...|# x|@|`|%YAML 9.9|1e999|10000000000
train.txt|.|/|..|[left, left]|[yes, no]|!!python/tuple [a]|!!python/object/apply:os.abort []|!!merge x|!!value x
"""
MANY = st.sampled_from(["9", "[", "{", "- ", "? ", "x", "1:", "0x1", "!!set {? "]).map(lambda text: text * 3000)
ODD = DUMPED | TAGGED | st.sampled_from(SNIPPETS.strip().replace("\n", "|").split("|")) | MANY | st.text(max_size=20)


@st.composite
def nearly_datasets(draw: st.DrawFn) -> bytes:
    """A good dataset file with one or several odd values, keys or lines."""
    pairs = list(DATASET.items())[: draw(st.sampled_from([7, 8]))]  # categories, the last, may be missing
    for _ in range(draw(TIMES)):
        place = draw(st.integers(0, len(pairs) - 1))
        key, value = pairs[place]
        change = draw(st.sampled_from(["value", "value", "value", "key", "more", "less"]))
        if change == "value":
            pairs[place] = key, draw(draw(st.sampled_from([NEAR.get(key, ODD), ODD])))
        elif change == "key":
            pairs[place] = draw(ODD | st.sampled_from([*DATASET, "<<"])), value
        elif change == "more":
            pairs.insert(place, (draw(ODD | st.sampled_from([*DATASET, "<<"])), draw(ODD)))
        elif len(pairs) > 1:
            del pairs[place]
    text = "".join(f"{key}: {value}\n" for key, value in pairs)
    return (draw(st.sampled_from(["", "\ufeff", "---\n"])) + text).encode("utf-8", "surrogatepass")


@given(content=st.binary(max_size=300) | damaged(VALID.encode()) | nearly_datasets())
@example(content=VALID.encode())
@example(content=VALID.replace(": 2", ": 10000000000").encode())
def test_any_bytes_are_a_dataset_or_an_error_of_one_line(folder, content):
    file = folder / "own.yaml"
    file.write_bytes(content)
    config = result_or_refusal(lambda: load_dataset_config(str(file)))
    if config is None:
        return
    assert isinstance(config, DatasetConfig) and 1 <= config.num_classes <= 1_000_000
    assert config.categories is None or len(set(config.categories)) == config.num_classes
    for path in config.root, config.train_list, config.val_list:
        result_or_refusal(lambda path=path: read_list(path, config.num_classes))
    result_or_refusal(lambda: config.mirror_pairs)
    result_or_refusal(config.open_source)
    if config.source != "folder":
        return
    fields = config.image_tmpl.count("{") - 2 * config.image_tmpl.count("{{")
    assert len(config.image_tmpl.format(*[1] * 3)) <= len(config.image_tmpl) + 20 * max(fields, 1)
