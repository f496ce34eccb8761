"""Recipes: every number that a run depends on, from YAML files. Values on the command line win."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

from data.clip_rules import CLIP_RULES, TRAIN_RULES, VAL_RULES
from data.colour import COLOR_JITTER
from data.messages import one_line, shown
from data.modality import MODALITIES
from data.pixels import FAITHFUL, PIXELS
from data.sampling import SHORT_VIDEOS
from data.transforms import CROP_RULES, TRAIN_CROPS
from data.yaml_file import read_mapping
from models.families import models

from .clip_checks import check_clips
from .values import (
    NOT_NEGATIVE,
    ConfigError,
    Range,
    parse_factors,
    parse_interval,
    parse_size,
    parse_views,
)

RECIPES = Path(__file__).parents[1] / "models" / "recipes"


def first_few(names: list[str], count: int = 8) -> str:
    """A text with the first few names, and their total number if there are more."""
    more = f", ... ({len(names)} in all)" if len(names) > count else ""
    return ", ".join(one_line(name) for name in names[:count]) + more


Size = typing.NewType("Size", object)  # short side, or "HxW", or none
Interval = typing.NewType("Interval", object)  # steps, or "20m", or none
Switch = typing.NewType("Switch", object)  # true, false or "auto"
Factors = typing.NewType("Factors", dict)  # group of parameters -> factor of its learning rate


@dataclass
class Recipe:
    """The settings of a run. ``models/recipes/tsn_r50.yaml`` explains each key and names its source."""

    # origin
    source: str
    # network
    modality: str
    data_length: int
    num_segments: int
    units: int | None
    dropout: float
    stochastic_depth: float
    partial_bn: bool
    pretrained: str | None
    tune_from: str | None
    frozen_stages: int
    norm_eval: bool
    model_options: dict
    # optimisation
    epochs: int
    global_batch_size: int
    batch_size: int | None
    lr: float
    scale_lr: bool
    schedule: str
    warmup_epochs: int
    min_lr_ratio: float
    lr_steps: list[int]
    lr_decay: float
    lr_multipliers: bool
    lr_mults: Factors
    momentum: float
    nesterov: bool
    weight_decay: float
    decay_all: bool
    clip_gradient: float | None
    label_smoothing: float
    ema_decay: float | None
    sync_bn: bool
    skip_nonfinite: int
    # speed and memory
    precision: str
    channels_last: bool
    compile: Switch
    cudnn_benchmark: bool
    activation_checkpointing: bool
    pixels: str
    # training clips
    train_frames: str
    train_resize: Size
    train_crop: str
    train_crop_size: int | None
    input_size: int
    color_jitter: str
    flip: str
    # validation and test clips
    val_resize: Size
    val_crop: int
    val_clip_rule: str
    val_short_videos: str
    eval_every: int
    eval_last: int
    test_views: str
    test_resize: Size
    test_crop: int
    test_crop_rule: str
    test_input: int | None
    test_clip_rule: str
    test_short_videos: str
    test_view_average: str
    # the run
    seed: int
    workers: int
    print_every: int
    keep: int
    save_every: Interval
    on_bad_video: str


CHOICES = {
    "modality": MODALITIES,
    "precision": ("auto", "fp32", "tf32", "bf16", "fp16"),
    "schedule": ("cosine", "step"),
    "pixels": PIXELS,
    "train_frames": TRAIN_RULES,
    "train_crop": TRAIN_CROPS,
    "color_jitter": COLOR_JITTER,
    "flip": ("none", "skip", "swap", "keep"),
    "val_clip_rule": VAL_RULES,
    "val_short_videos": SHORT_VIDEOS,
    "test_crop_rule": CROP_RULES,
    "test_clip_rule": tuple(CLIP_RULES),
    "test_short_videos": SHORT_VIDEOS,
    "test_view_average": ("logits", "softmax"),
    "on_bad_video": ("stop", "skip"),
}


POSITIVE = Range(0, open_low=True)
SHARE, BELOW_ONE = Range(0, 1), Range(0, 1, open_high=True)
SIDE = Range(1, 4096)  # px
# No useful count is near its upper bound. A larger number is a typing error that would fill the memory or run for ever.
RANGES = {
    "data_length": Range(1, 64),
    "num_segments": Range(1, 1024),
    "units": Range(1, 64),
    **dict.fromkeys(("dropout", "stochastic_depth", "label_smoothing", "momentum", "ema_decay"), BELOW_ONE),
    "frozen_stages": Range(-1, 4),
    "epochs": Range(1, 100_000),
    **dict.fromkeys(("global_batch_size", "batch_size"), Range(1, 1_000_000)),
    "lr": POSITIVE,
    "warmup_epochs": NOT_NEGATIVE,
    "min_lr_ratio": SHARE,
    "lr_decay": Range(0, 1, open_low=True),
    "weight_decay": NOT_NEGATIVE,
    "clip_gradient": POSITIVE,
    "skip_nonfinite": NOT_NEGATIVE,
    **dict.fromkeys(("train_crop_size", "input_size", "val_crop", "test_crop", "test_input"), SIDE),
    **dict.fromkeys(("eval_every", "print_every", "keep"), Range(1)),
    "eval_last": NOT_NEGATIVE,
    "seed": Range(0, 2**32 - 1),  # numpy's
    "workers": Range(0, 256),
}
FACTOR = "_lr_mult"  # the ending of flags: --sda_lr_mult 5 means lr_mults: {sda: 5}
# What runs did that were started before these keys existed.
BEFORE_KEYS = {
    "compile": False,
    "pixels": FAITHFUL,
    "units": None,
    "train_frames": "segments",
    "train_crop": "multi_scale",
    "train_crop_size": None,
    "color_jitter": "none",
    "val_clip_rule": "usual",
    "test_crop_rule": "grid",
    "test_input": None,
    "test_clip_rule": "usual",
    "test_view_average": "logits",
}
KEYS = {field.name: field.type for field in dataclasses.fields(Recipe)}


def load_recipe(
    model: str, dataset: str, variant: str | None = None, kept: dict | None = None, **overrides: object
) -> Recipe:
    """The recipe of ``model`` for ``dataset``.

    A recipe file may name a ``base`` file and change the recipe of that file. It may also have ``datasets:`` and
    ``variants:`` with further changes. Values are applied in this order, and later ones win: the base, the file, its
    lines for the dataset, ``kept`` (the recipe of a resumed run), the ``variant``, ``overrides``. ``lr_mults`` is
    merged key by key.

    Errors: ``ConfigError`` with the file, the key and the remedy.
    """
    path = recipe_file(model)
    values, variants = _read(path, dataset)
    if kept:
        values |= BEFORE_KEYS
        values = _merged(values, {key: value for key, value in present_names(kept).items() if key in KEYS})
    if variant is not None:
        if variant not in variants:
            raise ConfigError(f"{path.name}: no variant {variant!r}; known: {', '.join(variants) or 'none'}")
        values = _merged(values, variants[variant])
    values = _merged(values, overrides)
    missing = [key for key in KEYS if key not in values]
    if missing:
        raise ConfigError(f"{path}: lacks the key {missing[0]!r}")
    recipe = Recipe(**{key: coerce(key, value) for key, value in values.items()})
    if recipe.nesterov and not recipe.momentum:
        raise ConfigError("nesterov is true and momentum 0; give a momentum above 0, such as 0.9, or --nesterov false")
    check_clips(recipe)
    return recipe


def recipe_file(model: str) -> Path:
    """The recipe file of a model. Its folder depends on the model's family."""
    family, _ = models().get(model, (None, None))
    return ((family and family.recipes) or RECIPES) / f"{model}.yaml"


def present_names(recipe: dict) -> dict:
    """Rename old keys of a recipe: ``sda_lr_mult: 5`` becomes ``lr_mults: {sda: 5}``."""
    old = [key for key in recipe if key.endswith(FACTOR) and key != FACTOR]
    others = {key: value for key, value in recipe.items() if key not in old}
    return _merged(others, {"lr_mults": {key.removesuffix(FACTOR): recipe[key] for key in old}}) if old else others


def list_variants(model: str) -> list[str]:
    """The names that ``load_recipe`` knows as ``variant``.

    Errors: ``ConfigError`` if the recipe file cannot be read.
    """
    return list(_read(recipe_file(model), "")[1])


def coerce(key: str, value: object) -> object:
    """Convert ``value``, from YAML or the command line, to the type of a recipe key.

    Errors: ``ConfigError`` if the value has another type or is out of range.
    """
    check_key(key, KEYS, "recipe key")
    declared = KEYS[key]
    optional = isinstance(declared, types.UnionType)
    kind = typing.get_args(declared)[0] if optional else declared
    if kind is Factors:
        return parse_factors(value)
    if isinstance(value, str) and kind is not str:
        try:
            value = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(f"{key} is {shown(value)}, which cannot be read as a {kind.__name__}") from None
    if optional and (value is None or (isinstance(value, str) and value in ("none", "null", ""))):
        return None
    if kind is Size:
        return parse_size(value)
    if kind is Interval:
        return parse_interval(value)
    if kind is Switch:
        if value != "auto" and not isinstance(value, bool):
            raise ConfigError(f"{key} is {shown(value)}; choose from auto, true, false")
        return value
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            value = float(value)
        except (ValueError, OverflowError):
            raise ConfigError(f"{key} is {shown(value)}, not a number") from None
    if kind == list[int]:
        if not isinstance(value, list) or any(type(item) is not int or item < 1 for item in value):
            raise ConfigError(f"{key} is {shown(value)}, not a list of whole numbers from 1, such as [20, 40]")
        return value
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"{key} is {shown(value)}, not a {kind.__name__}")
    if key in CHOICES and value not in CHOICES[key]:
        near = difflib.get_close_matches(value, CHOICES[key], n=1) if len(CHOICES[key]) > 5 else []
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{key} is {shown(value)}; {hint}choose from {', '.join(CHOICES[key])}")
    if key in RANGES and value not in RANGES[key]:
        raise ConfigError(f"{key} is {shown(value)}; it must be {RANGES[key]}")
    if key == "test_views":
        parse_views(value, clip_rule=None)
    return value


def check_key(key: str, known: typing.Iterable[str], what: str) -> None:
    """Check that a key is known.

    Errors: ``ConfigError`` that names the most similar key.
    """
    known = list(known)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        raise ConfigError(f"unknown {what} {key!r}; " + (f"did you mean {near[0]}?" if near else f"known: {known}"))


def to_plain(recipe: Recipe) -> dict:
    """The recipe as a dictionary of plain values, for YAML files and checkpoints."""
    values = dataclasses.asdict(recipe)
    return {k: "x".join(map(str, v)) if isinstance(v, tuple) else v for k, v in values.items()}


def _merged(values: dict, changes: dict) -> dict:
    """``values`` updated with ``changes``. ``lr_mults`` is merged key by key."""
    changes = present_names(changes)
    if "lr_mults" in changes:
        factors = [coerce("lr_mults", given["lr_mults"]) for given in (values, changes) if "lr_mults" in given]
        changes["lr_mults"] = {group: factor for given in factors for group, factor in given.items()}
    return values | changes


def _read(path: Path, dataset: str) -> tuple[dict, dict]:
    """The values for a dataset and the variants of a recipe file, merged into the values and variants of its base."""
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ConfigError(f"no recipe {path.stem!r} in models/recipes; known: {known}")
    content = read_mapping(path, ConfigError)
    base = content.pop("base", None)
    datasets, variants = (_mapping(content.pop(key, {}), path) for key in ("datasets", "variants"))
    for part in (content, *datasets.values(), *variants.values()):
        try:
            for key in _merged({}, _mapping(part, path)):
                check_key(key, KEYS, "recipe key")
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    values = _merged(content, datasets.get(dataset, {}))
    if base is None:
        return values, variants
    if base == path.stem:
        raise ConfigError(f"{path}: names itself as its base")
    beside = path.with_name(f"{base}.yaml")
    base_values, base_variants = _read(beside if beside.is_file() else recipe_file(base), dataset)
    return _merged(base_values, values), base_variants | variants


def _mapping(value: object, path: Path) -> dict:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold 'key: value' lines, and such lines under each dataset and variant")
    return value
