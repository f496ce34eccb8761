"""Published results: the rows of ``published.yaml``, and the line that compares a test of ours with them."""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path

from data import list_datasets
from data.messages import one_line, shown
from data.modality import RGB
from data.sampling import AS_IT_IS, FrameOrder
from data.yaml_file import read_mapping
from models import list_models

from .config import ConfigError, Size, check_key, load_recipe, parse_size
from .protocols import PROTOCOLS, choose_views
from .testing import Member, protocol_line

FILE = Path(__file__).with_name("published.yaml")
PERCENTS = ("top1", "top5", "mean_class")


@dataclass(frozen=True)
class Row:
    """A published result on one dataset. ``published.yaml`` explains the fields. None means that it is not known."""

    source: str
    system: str
    dataset: str
    model: str | None = None
    frames: tuple[int, ...] = ()  # a number for each network of an ensemble; empty: not known
    segments: int | None = None
    crops: int | None = None
    clips: int | None = None
    printed: str | None = None
    resize: Size | None = None
    input: int | None = None
    protocol: tuple[str, ...] = ()  # the test is one of these; empty: not known
    params: float | None = None  # millions
    gmacs: float | None = None  # G multiply-adds of a view
    top1: float | None = None  # percent, like the next two
    top5: float | None = None
    mean_class: float | None = None
    note: str | None = None

    @property
    def num_segments(self) -> tuple[int, ...]:
        """Our ``num_segments`` of each network, from the smallest."""
        return (self.segments,) if self.segments else tuple(sorted(self.frames))

    @property
    def views(self) -> str:
        """The text "frames x crops x clips @ input", such as ``8x3x2 @224``. What is not known is a question mark."""
        frames = "+".join(map(str, self.frames)) or "?"
        frames = f"({frames})" if len(self.frames) > 1 else frames
        return f"{frames}x{self.crops or '?'}x{self.clips or '?'} @{self.input or '?'}"

    @property
    def figure(self) -> str:
        """The accuracy in percent: ``47.4``, ``47.4 / 76.6`` with Top-5, or ``mean class 50.9``."""
        if self.top1 is None and self.top5 is None:
            return f"mean class {self.mean_class}"
        return f"{self.top1 or '-'}" + (f" / {self.top5}" if self.top5 else "")


@dataclass(frozen=True)
class Published:
    """All rows, and the number of videos of the validation lists that are known."""

    rows: list[Row]
    videos: dict[str, int]


FIELDS = {field.name: field.type for field in dataclasses.fields(Row)}


def load_published(path: Path | None = None) -> Published:
    """The content of ``published.yaml``, or of another file of this form.

    Errors: ``ConfigError`` that names the file, the table, the row, the value and the remedy.
    """
    path = path or FILE
    content = read_mapping(path, ConfigError)
    try:
        videos = content.pop("videos", {})
        if not isinstance(videos, dict):
            raise ConfigError(f"videos is {shown(videos)}; write a line 'dataset: number' for each dataset")
        for name, count in videos.items():
            check_key(name, list_datasets(), "dataset in videos")
            _checked("videos", count, int)
        return Published([row for name, table in content.items() for row in _rows(name, table)], videos)
    except ConfigError as error:
        raise ConfigError(f"{one_line(path)}: {error}") from None


def _rows(name: str, table: object) -> list[Row]:
    """The rows of a table, one for each dataset of a line."""
    if not isinstance(table, dict) or not isinstance(table.get("rows"), list):
        raise ConfigError(f"{one_line(name)} is {shown(table)}; a table needs 'rows:' and a list of rows")
    shared = {key: value for key, value in table.items() if key != "rows"}
    found = []
    for number, line in enumerate(table["rows"], start=1):
        try:
            if not isinstance(line, dict):
                raise ConfigError(f"{shown(line)} is no row; write it as 'key: value' lines")
            found += _split(shared | line)
        except ConfigError as error:
            raise ConfigError(f"{one_line(name)}, row {number}: {error}") from None
    return found


def _split(values: dict) -> list[Row]:
    """The rows of a line. A line may name several datasets."""
    for key in values:
        check_key(key, FIELDS, "key")
    for key in ("source", "system", "dataset"):
        if values.get(key) is None:
            raise ConfigError(f"lacks the key {key!r}")
    datasets = _tuple(values["dataset"])
    for dataset in datasets:
        check_key(str(dataset), list_datasets(), "dataset")
    for model in _tuple(values.get("model")):
        check_key(str(model), list_models(), "model")
    for protocol in _tuple(values.get("protocol")):
        check_key(str(protocol), PROTOCOLS, "protocol")
    figures = {key: _tuple(values.get(key)) or (None,) * len(datasets) for key in PERCENTS}
    for key, given in figures.items():
        if len(given) != len(datasets):
            raise ConfigError(f"{key} is {shown(values[key])}, datasets are {len(datasets)}; give one for each")
        if any(value is not None and not 0 <= _checked(key, value, float) <= 100 for value in given):
            raise ConfigError(f"{key} is {shown(values[key])}; it must be from 0 to 100 percent")
    common = {key: _field(key, value) for key, value in values.items() if key not in ("dataset", *PERCENTS)}
    rows = []
    for i, dataset in enumerate(datasets):
        own = {key: given[i] for key, given in figures.items()}
        if all(value is None for value in own.values()):
            raise ConfigError(f"has no figure of {dataset}; give {', '.join(PERCENTS[:-1])} or {PERCENTS[-1]}")
        rows.append(Row(**common, **own, dataset=dataset))
    return rows


def _field(key: str, value: object) -> object:
    """A value of a row in the type of its field."""
    declared = FIELDS[key]
    if key == "resize":
        return parse_size(value)
    if typing.get_origin(declared) is tuple:
        return tuple(_checked(key, item, typing.get_args(declared)[0]) for item in _tuple(value))
    if isinstance(declared, types.UnionType):
        return None if value is None else _checked(key, value, typing.get_args(declared)[0])
    return _checked(key, value, declared)


def _checked(key: str, value: object, kind: type) -> object:
    """``value`` if it is of this kind, and above 0 if it is a count."""
    kinds = (int, float) if kind is float else (kind,)
    if type(value) not in kinds:
        raise ConfigError(f"{key} is {shown(value)}, not a {kind.__name__}")
    if kind is int and value < 1:
        raise ConfigError(f"{key} is {shown(value)}; it must be at least 1")
    return value


def _tuple(value: object) -> tuple:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


@dataclass(frozen=True)
class FinishedTest:
    """A finished test of ours."""

    dataset: str
    members: list[Member]
    average: str  # of an ensemble: "logits" or "softmax"
    order: FrameOrder
    other_list: str | None  # the list of ``--list``, if it is not the dataset's own
    listed: int  # videos in the list
    scored: int  # videos that could be read
    result: dict[str, float]  # percent: top1, top5, class_accuracy


def published_line(published: Published, finished: FinishedTest) -> str | None:
    """A line with the published result of the tested network on this dataset. None if nothing is published.

    If a row has the same frames, views and protocol, the line says the difference in percentage points. Otherwise it
    names the nearest row, and says why the two do not compare. An ensemble is compared only with ensembles.
    """
    models = {member.model.arch for member in finished.members}
    ensemble = len(finished.members) > 1
    rows = [row for row in published.rows if {row.model} == models and row.dataset == finished.dataset]
    rows = [row for row in rows if (len(row.frames) > 1) == ensemble]
    if not rows:
        return None
    same = [row for row in rows if is_same_test(row, finished)]
    row = min(same or rows, key=lambda row: _distance(row, finished))
    text = f"published: {row.figure} ({row.source}) for {row.views}"
    if row.protocol:
        text += f" by {' or '.join(row.protocol)}"
    problem = not_comparable(published, finished)
    if problem:
        return f"{text}; {problem}, so they do not compare"
    if same:
        return f"{text}; the difference is {_difference(row, finished.result)} percentage points"
    here = f"this test is {protocol_line(finished.members)} ({finished.members[0].views})"
    if not row.protocol and _agrees(row, finished):
        return f"{text}; {here}, and the source does not tell its whole test, so they may not compare"
    return f"{text}; {here}, so they do not compare"


def is_same_test(row: Row, finished: FinishedTest) -> bool:
    """Whether this test has the frames, the views and a protocol of a row. Fast pixels count as faithful ones.

    False if the row does not tell its crops, clips or protocol.
    """
    if not (row.crops and row.clips and _frames(finished) == row.num_segments):
        return False
    if len(finished.members) > 1 and (finished.average != "logits" or len({m.share for m in finished.members}) > 1):
        return False  # all published ensembles whose protocol is known are plain means of logits
    return any(
        all(_has_views(member, name, f"{row.crops}x{row.clips}") for member in finished.members)
        for name in row.protocol
    )


def not_comparable(published: Published, finished: FinishedTest) -> str | None:
    """Why the accuracy of a test is not comparable with any published one; None if it is."""
    usual = published.videos.get(finished.dataset)
    if finished.order != AS_IT_IS:
        return f"this test has its frames {finished.order}"
    if finished.other_list:
        return f"this test is of the list {one_line(finished.other_list)}"
    if finished.scored < finished.listed:
        return f"this test leaves out {finished.listed - finished.scored:,} of {finished.listed:,} videos"
    if usual is not None and finished.listed != usual:
        return f"this list has {finished.listed:,} videos, the official one {usual:,}"
    for member in finished.members:
        if member.modality != RGB:
            return f"{member.file} sees {member.recipe.modality}"
        if member.recipe.model_options != load_recipe(member.model.arch, finished.dataset).model_options:
            return f"{member.file} has the model_options {shown(member.recipe.model_options)}"
    return None


def _frames(finished: FinishedTest) -> tuple[int, ...]:
    return tuple(sorted(member.recipe.num_segments for member in finished.members))


def _has_views(member: Member, protocol: str, views: str) -> bool:
    """Whether a member sees the views of a protocol."""
    released = choose_views(member.recipe, protocol, views=views)
    same = {"pixels": member.views.pixels, "mirrored_scores": member.views.mirrored_scores}
    return dataclasses.replace(released, **same) == member.views


def _agrees(row: Row, finished: FinishedTest) -> bool:
    """Whether nothing that a row tells of its test differs from this one."""
    seen = [(member.views.crops, member.views.clips, member.views.input) for member in finished.members]
    told = (row.crops, row.clips, row.input)
    pairs = [(value, own) for views in seen for value, own in zip(told, views, strict=True) if value]
    return (not row.frames or row.num_segments == _frames(finished)) and all(value == own for value, own in pairs)


def _distance(row: Row, finished: FinishedTest) -> tuple:
    """How far a row's test is from this one: first its frames, then its views, then its input, then missing figures."""
    views = finished.members[0].views
    frames = abs(sum(row.num_segments) - sum(_frames(finished))) if row.frames else math.inf
    count = abs(row.crops * row.clips - views.crops * views.clips) if row.crops and row.clips else math.inf
    return frames, count, row.input != views.input, not row.protocol, row.top1 is None, row.top5 is None


def _difference(row: Row, result: dict[str, float]) -> str:
    """What a test has more than a row, in the form of the row's ``figure``."""
    if row.top1 is None and row.top5 is None:
        return f"{result['class_accuracy'] - row.mean_class:+.2f}"
    pairs = [(result["top1"], row.top1), (result["top5"], row.top5)]
    told = [f"{own - value:+.2f}" if value is not None else "-" for own, value in pairs]
    return " / ".join(told if row.top5 is not None and not math.isnan(result["top5"]) else told[:1])
