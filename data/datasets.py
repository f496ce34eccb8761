"""Descriptions of datasets: a name in this folder or a path to a YAML file."""

import difflib
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

import yaml

from . import toy
from .decode import template_fields
from .labels import mirror_pairs, read_categories
from .video_list import DataError

FOLDER = Path(__file__).parent
PATHS = ("root", "train_list", "val_list")


@dataclass(frozen=True)
class DatasetConfig:
    """One dataset. In a file, relative paths count from the file's folder."""

    name: str
    num_classes: int
    root: str
    train_list: str
    val_list: str
    image_tmpl: str
    categories: list[str] | None = None

    @property
    def mirror_pairs(self) -> dict[int, int]:
        """label -> label that a horizontal flip turns it into."""
        return mirror_pairs(self.categories)


def list_datasets() -> list[str]:
    """The names that ``load_dataset_config`` knows."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_dataset_config(dataset: str, **overrides: str | None) -> DatasetConfig:
    """A dataset by name or YAML path; ``overrides`` (root, train_list, val_list, image_tmpl) win where they are given.

    ``toy_something`` is drawn on first use. Errors: ``DataError`` that names the file, the key and a remedy.
    """
    path = Path(dataset) if dataset.endswith((".yaml", ".yml")) else FOLDER / f"{dataset}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(dataset, list_datasets(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(list_datasets())}, or a path to a .yaml file"
        raise DataError(f"no dataset {dataset!r}; {hint}")
    values = _read(path)
    folder = _as_seen_from_here(path.parent)
    for key in PATHS:
        values[key] = str(folder / values[key])
    if isinstance(values.get("categories"), str):
        values["categories"] = folder / values["categories"]
    config = DatasetConfig(**values | {"categories": read_categories(values.get("categories"), values["num_classes"])})
    config = replace(config, **{key: value for key, value in overrides.items() if value is not None})
    _check_template(config.image_tmpl, path)
    if config.name == toy.NAME and not overrides.get("root"):
        toy.draw_once(FOLDER / toy.NAME, config.categories)
    return config


def _as_seen_from_here(folder: Path) -> Path:
    """Relative to the working folder where it lies in it, for messages and logs that can be read anywhere."""
    folder, here = folder.resolve(), Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _read(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: must hold 'key: value' lines, such as 'num_classes: 174'")
    known = {field.name: field.type for field in fields(DatasetConfig)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise DataError(f"{path}: unknown key {key!r}; {hint}")
    for field in fields(DatasetConfig):
        if field.default is MISSING and field.name not in values:
            raise DataError(f"{path}: lacks the key {field.name!r}")
        if field.type in (int, str) and type(values[field.name]) is not field.type:
            raise DataError(f"{path}: {field.name} is {values[field.name]!r}, not {field.type.__name__}")
    names = values.get("categories")
    if not (names is None or isinstance(names, str) or (type(names) is list and all(type(n) is str for n in names))):
        raise DataError(f"{path}: categories must be a file name or a list of names in quotes, not {names!r}")
    if values["num_classes"] < 1:
        raise DataError(f"{path}: num_classes is {values['num_classes']}, must be at least 1")
    return values


def _check_template(image_tmpl: str, path: Path) -> None:
    """Errors: ``DataError``. Whether it suits the modality is known where a modality is chosen."""
    try:
        template_fields(image_tmpl)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
