"""Rules for the entries of a checkpoint. The rules are data, and one function checks them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.weight_files import shown, shown_name

from .config import ConfigError

LARGEST = torch.iinfo(torch.int64).max  # the largest number in a tensor
LARGEST_FLOAT = torch.finfo(torch.float32).max
REMEDY = "give a checkpoint as main.py wrote it, or a file with its state_dict alone"


@dataclass(frozen=True)
class Entry:
    """The rule for an entry, in words and as a test. If ``needed``, checkpoints of every version have the entry."""

    what: str
    holds: Callable[[object], bool]
    needed: bool = False


def check_entries(content: dict, entries: dict[str, Entry], source: str, remedy: str = REMEDY) -> None:
    """Check the ``entries`` of ``content``.

    ``a.b`` is the entry ``b`` of ``a``, and ``a.*`` is every entry of ``a``. ``a`` must come before both in
    ``entries``.

    Errors: ``ConfigError`` for the first entry that is wrong, or that is needed but missing.
    """
    for key, entry in entries.items():
        found = [("", content)]
        for part in key.split("."):
            found = [(f"{place}.{name}", value) for place, holder in found for name, value in _items(holder, part)]
        for place, value in found:
            if not entry.holds(value):
                name = shown_name(place.removeprefix("."))
                raise ConfigError(f"{source}: {name} is {shown(value)}, must be {entry.what}; {remedy}")
        if entry.needed and not found:
            raise ConfigError(f"{source}: holds no {key}; {remedy}")


def _items(holder: dict | list, part: str) -> Iterable[tuple[str, object]]:
    if part == "*":
        pairs = holder.items() if isinstance(holder, dict) else enumerate(holder)
        return [(name if isinstance(name, str) else shown(name), value) for name, value in pairs]
    return [(part, holder[part])] if part in holder else []


def _mapping(value: object) -> bool:
    return isinstance(value, dict)


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 4096


def _name(value: object) -> bool:
    return value is None or (_text(value) and len(value) <= 100)


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST  # type() excludes bool, which is a subclass of int


def _number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_FLOAT  # false for NaN


def _positive(value: object) -> bool:
    return _number(value) and value > 0


def _small_count(value: object) -> bool:
    return _count(value) and value <= torch.iinfo(torch.int32).max


def _percent(value: object) -> bool:
    return _number(value) and 0 <= value <= 100


def _totals(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_number, value))


def _categories(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(map(_text, value)))


def _named(value: object) -> bool:
    return _mapping(value) and all(map(_text, value))


def _plain(value: object) -> bool:
    if type(value) is int:
        return abs(value) <= LARGEST
    return value is None or isinstance(value, (bool, float)) or _text(value)


def _setting(value: object) -> bool:
    return all(map(_plain, value)) if isinstance(value, (list, tuple)) else _plain(value)


def _options(value: object) -> bool:
    return _named(value) and "pretrained" not in value and all(map(_setting, value.values()))


def _texts(value: object) -> bool:
    return _named(value) and all(map(_text, value.values()))


def _momentum(value: object) -> bool:
    return _mapping(value) and set(value) <= {"momentum_buffer"} and all(map(_tensor, value.values()))


def _tensor(value: object) -> bool:
    return value is None or isinstance(value, Tensor)


def _group(value: object) -> bool:
    return _mapping(value) and isinstance(value.get("params"), list)


def _scaler(value: object) -> bool:
    return _mapping(value) and (not value or set(SCALER) <= set(value))


COUNT, MAPPING, MODEL = "a whole number of at least 0", "a mapping", "a model's name"
NUMBER = "a finite number above 0"
# The entries that testing and exporting read.
SETTINGS = {
    "arch": Entry(MODEL, _name),
    "config": Entry(MAPPING, _mapping),
    "config.model": Entry(MODEL, _name),
    "config.recipe": Entry("a mapping of recipe keys to values", _named),
    "config.recipe.model_options": Entry("a mapping of the network's options, not pretrained, to values", _options),
    "config.recipe.*": Entry("a number, a word, or a list of these", lambda value: _setting(value) or _options(value)),
    "config.dataset": Entry(MAPPING, _mapping),
    "config.dataset.name": Entry("a name", _text),
    "config.dataset.num_classes": Entry(COUNT, _count),
    "config.dataset.categories": Entry("a list of class names, or none", _categories),
}
SCALER = {
    "scale": Entry(NUMBER, _positive),
    "growth_factor": Entry(NUMBER, _positive),
    "backoff_factor": Entry(NUMBER, _positive),
    "growth_interval": Entry(COUNT, _small_count),
    "_growth_tracker": Entry(COUNT, _small_count),
}
# The entries that a resumed run reads.
RESUMED = SETTINGS | {
    "config": Entry(MAPPING, _mapping, needed=True),
    "config.variant": Entry("a variant's name, or none", _name),
    "config.flags": Entry("a mapping of flags to values", _named),
    "config.flags.*": Entry("a number, a word, or a list of these", _setting),
    "config.lists": Entry("a mapping of lists to their fingerprints", _texts),
    "config.processes": Entry(COUNT, _count),
    "arch": Entry(MODEL, _name, needed=True),
    "state_dict": Entry(MAPPING, _mapping, needed=True),
    "train_state_dict": Entry(MAPPING, _mapping),
    "epoch": Entry(COUNT, _count, needed=True),
    "step": Entry(COUNT, _count),
    "best_prec1": Entry("a number from 0 to 100", _percent, needed=True),
    "skipped": Entry(COUNT, _count),
    "totals": Entry("a list of four finite numbers", _totals),
    "left_out": Entry("a mapping of videos to reasons", _texts),
    "optimizer": Entry(MAPPING, _mapping, needed=True),
    "optimizer.state": Entry(MAPPING, _mapping, needed=True),
    "optimizer.state.*": Entry("a mapping with a tensor momentum_buffer, and nothing else", _momentum),
    "optimizer.param_groups": Entry("a list", lambda value: isinstance(value, list), needed=True),
    "optimizer.param_groups.*": Entry("a mapping with a list params", _group),
    "scaler": Entry(f"empty, or a mapping with {', '.join(SCALER)}", _scaler),
    **{f"scaler.{key}": entry for key, entry in SCALER.items()},
    "ema_updates": Entry(COUNT, _count),
}
