"""Reads the values of recipe keys and flags: ranges, sizes, intervals, factors and views."""

import math
import re
from contextlib import suppress
from dataclasses import dataclass

import yaml

from data.clip_rules import CLIP_RULES
from data.image_file import MIN_SIDE
from data.messages import shown
from data.transforms import CROPS


class ConfigError(ValueError):
    """A setting that cannot be used. The message is one line with the value and the remedy."""


@dataclass(frozen=True)
class Range:
    """The numbers that a key may have, from ``low`` to ``high``. ``open_low`` and ``open_high`` exclude the bounds."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below and value != math.inf

    def __str__(self) -> str:
        text = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        if self.high == math.inf:
            return text
        # Print 1000000 instead of 1e+06, because a user will type the number.
        return f"{text} and {'below' if self.open_high else 'at most'} {self.high:{'g' if self.high < 1e6 else '.0f'}}"


NOT_NEGATIVE = Range(0)
FRAME_SIDE = Range(MIN_SIDE, 4096)  # px


def parse_size(value: object) -> int | tuple[int, int] | None:
    """Read a size: ``256`` is the short side, ``"240x320"`` is height x width, ``"none"`` or ``None`` keeps the size.

    Errors: ``ConfigError`` for any other value.
    """
    if value in (None, "none"):
        return None
    try:
        if isinstance(value, (list, tuple)):
            height, width = value
        elif isinstance(value, str) and "x" in value:
            height, width = value.split("x")
        else:
            height = width = value
        size = int(str(height)), int(str(width))
    except (TypeError, ValueError):
        raise ConfigError(f"size {shown(value)} is neither a short side such as 256 nor HxW such as 240x320") from None
    if not all(side in FRAME_SIDE for side in size):
        raise ConfigError(f"size {shown(value)} must be {FRAME_SIDE} px")
    return size if isinstance(value, (list, tuple)) or "x" in str(value) else size[0]


def parse_interval(value: object) -> int | str | None:
    """Read an interval: ``500`` means steps, ``"20m"`` means minutes, ``"none"`` or ``None`` means never.

    Errors: ``ConfigError`` for any other value.
    """
    if value in (None, "none"):
        return None
    text = str(value)
    number = text.removesuffix("m")
    try:
        if isinstance(value, bool) or not 0 < float(number) < math.inf:
            raise ValueError
        return f"{float(number):g}m" if text.endswith("m") else int(number)
    except ValueError:
        raise ConfigError(f"interval {shown(value)} is neither steps such as 500 nor minutes such as 20m") from None


def parse_factors(value: object) -> dict[str, float]:
    """Read a mapping such as ``{"fc": 5}`` to numbers that are at least 0.

    Errors: ``ConfigError`` for any other value.
    """
    form = "write factors of groups as {fc: 5, fc_bias: 10}"
    if isinstance(value, str):
        with suppress(yaml.YAMLError, ValueError, RecursionError):
            value = yaml.safe_load(value)
    if not isinstance(value, dict):
        raise ConfigError(f"lr_mults is {shown(value)}; {form}")
    factors = {}
    for group, factor in value.items():
        try:
            factors[str(group)] = float(str(factor))
        except ValueError:
            raise ConfigError(f"lr_mults: {shown(group)} is {shown(factor)}, not a number; {form}") from None
        if factors[str(group)] not in NOT_NEGATIVE:
            raise ConfigError(f"lr_mults: {shown(group)} is {shown(factor)}; it must be {NOT_NEGATIVE}")
    return factors


def parse_views(value: str, clip_rule: str | None = "usual") -> tuple[int, int]:
    """``"3x2"`` -> (3 crops, 2 clips). ``None`` as ``clip_rule`` allows each number of clips that some rule allows.

    Errors: ``ConfigError`` for any other value.
    """
    crops, _, clips = str(value).partition("x")
    rules = CLIP_RULES.values() if clip_rule is None else [CLIP_RULES[clip_rule]]
    count = int(clips) if re.fullmatch("[1-9][0-9]{0,3}", clips) else 0
    if crops not in map(str, CROPS) or not any(rule.allows(count) for rule in rules):
        rule = CLIP_RULES[clip_rule or "usual"]
        of_rule = "" if clip_rule in (None, "usual") else f" of the clip rule {clip_rule}"
        example = 2 if rule.allows(2) else rule.counts[0]
        raise ConfigError(
            f"views {value!r} must be CROPSxCLIPS with 1, 3, 5 or 10 crops and {rule.counts_text} clips{of_rule}, as "
            f"3x{example}"
        )
    return int(crops), count
