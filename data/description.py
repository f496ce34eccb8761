"""Descriptions of datasets: a name in this folder or a path to a YAML file."""

import difflib
import os
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

from . import sources, toy
from .frame_source import FrameSource
from .labels import mirror_pairs, read_categories
from .messages import one_line, path_problem, shown
from .video_list import DataError
from .yaml_file import read_mapping

FOLDER = Path(__file__).parent
PATHS = ("root", "train_list", "val_list")
OVERRIDES = (*PATHS, "image_tmpl")  # what flags can replace
MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class DatasetConfig:
    """One dataset. In a dataset's file, relative paths start at the folder of that file.

    ``source`` says where the frames come from: ``folder`` (image files named by ``image_tmpl``), ``video`` (video
    files, which need no ``image_tmpl``), ``packed`` (a folder that ``scripts.pack`` wrote), or a name given to
    ``register_source``.
    """

    name: str
    num_classes: int
    root: str
    train_list: str
    val_list: str
    image_tmpl: str = ""
    categories: list[str] | None = None
    source: str = "folder"

    @property
    def mirror_pairs(self) -> dict[int, int]:
        """label -> the label that a horizontal flip turns it into."""
        return mirror_pairs(self.categories)

    def open_source(self) -> FrameSource:
        """The source of the frames.

        Errors: ``DataError`` for an unknown kind of source, or for settings that the source cannot use.
        """
        return sources.open_source(self)


def list_datasets() -> list[str]:
    """The names that ``load_dataset_config`` knows."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_dataset_config(dataset: str, with_names: bool = True, **overrides: str | None) -> DatasetConfig:
    """A dataset by its name or by the path of its YAML file.

    ``overrides`` (the keys in ``OVERRIDES``) replace values of the file unless they are None. If ``with_names`` is
    false, the class names are not read, so that a dataset with wrong names can be checked.
    ``toy_something`` is drawn when it is first used.

    Errors: ``DataError`` that names the file, the key and a remedy.
    """
    path = Path(dataset) if dataset.endswith((".yaml", ".yml")) else FOLDER / f"{dataset}.yaml"
    if not os.path.isfile(path):  # Path.is_file() raises if a name is too long
        near = difflib.get_close_matches(dataset, list_datasets(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(list_datasets())}, or a path to a .yaml file"
        if dataset.endswith((".yaml", ".yml")):
            hint = "there is no such file; check the path, which starts from the folder of the call"
        raise DataError(f"no dataset {shown(dataset)}; {hint}")
    values = _read(path)
    folder = _as_seen_from_here(path.parent)
    for key in PATHS:
        values[key] = str(folder / values[key])
    if isinstance(values.get("categories"), str):
        values["categories"] = folder / values["categories"]
    names = read_categories(values.get("categories"), values["num_classes"], path) if with_names else None
    config = DatasetConfig(**values | {"categories": names})
    config = replace(config, **{key: value for key, value in overrides.items() if value is not None})
    _check_source(config, path)
    if path.resolve() == FOLDER.resolve() / f"{toy.NAME}.yaml" and not overrides.get("root"):
        toy.draw_once(FOLDER / toy.NAME, config.categories)
    return config


def _as_seen_from_here(folder: Path) -> Path:
    """The path relative to the working folder if it lies inside. Messages then do not depend on the machine."""
    folder, here = folder.resolve(), Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _read(path: Path) -> dict:
    values, file = read_mapping(path, DataError), one_line(path)
    known = {field.name: field.type for field in fields(DatasetConfig)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise DataError(f"{file}: unknown key {shown(key)}; {hint}")
    for field in fields(DatasetConfig):
        if field.default is MISSING and field.name not in values:
            raise DataError(f"{file}: lacks the key {field.name!r}")
        value = values.get(field.name, field.default)
        if field.type in (int, str) and type(value) is not field.type:
            raise DataError(f"{file}: {field.name} is {shown(value)}, not {field.type.__name__}")
    names = values.get("categories")
    if not (names is None or isinstance(names, str) or (type(names) is list and all(type(n) is str for n in names))):
        raise DataError(f"{file}: categories must be a file name or a list of names in quotes, not {shown(names)}")
    for key, value in values.items():
        problem = path_problem(value) if isinstance(value, str) else None
        if problem:
            raise DataError(f"{file}: {key} {shown(value)} {problem}")
    if not 1 <= values["num_classes"] <= MOST_CLASSES:
        raise DataError(f"{file}: num_classes is {shown(values['num_classes'])}, must be from 1 to {MOST_CLASSES}")
    return values


def _check_source(config: DatasetConfig, path: Path) -> None:
    """Check that the source can be opened. Whether it holds what a modality reads is checked later.

    Errors: ``DataError``.
    """
    try:
        config.open_source()
    except DataError as error:
        raise DataError(f"{one_line(path)}: {error}") from None
