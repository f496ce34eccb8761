"""Writes, reads and checks the score file of a test."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .accuracy import highest

# array -> kinds of its numpy dtype, the same in words, its shape; N videos, K classes, M members of an ensemble.
# A file holds the arrays in this order.
ARRAYS = {
    "scores": ("f", "floats", "NK"),
    "labels": ("iu", "whole numbers", "N"),
    "paths": ("U", "strings", "N"),
    "members": ("f", "floats", "MNK"),
    "member_names": ("U", "strings", "M"),
    "average": ("U", "a string", ""),
    "protocol": ("U", "a string", ""),
    "categories": ("U", "strings", "K"),
}
REQUIRED = ("scores", "labels", "paths")
AVERAGES = ("logits", "softmax")


class ScoresError(ValueError):
    """A score file cannot be written, read or used for a report.

    The message is one line with the value and the remedy.
    """


@dataclass(frozen=True)
class Scores:
    """The scores of a test in list order, and how they were computed. Fields that a file does not hold are None.

    If a file does not give its ``average``, it holds logits.
    """

    scores: np.ndarray  # (N, K) float32
    labels: np.ndarray  # (N,) int64
    paths: list[str]  # N
    average: str = "logits"
    protocol: str | None = None
    categories: list[str] | None = None  # K
    members: np.ndarray | None = None  # (M, N, K) float32
    member_names: list[str] | None = None  # M
    path: str = ""  # of the file from which they were read

    @property
    def predictions(self) -> np.ndarray:
        """The label of the highest score: (N,) int64."""
        return highest(self.scores, 1)[:, 0]

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities (N, K) float64: the softmax of logits, or the scores themselves if they are probabilities."""
        return softmax(self.scores) if self.average == "logits" else self.scores.astype(np.float64)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) float64 of logits (N, K)."""
    scores = scores.astype(np.float64)
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def check_writable(path: str | Path) -> None:
    """Make the folder of a score file before the scores are computed.

    Errors: ``ScoresError`` if the file cannot be written there.
    """
    path = Path(path)
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        part.open("wb").close()
        part.unlink()
    except OSError as error:
        raise ScoresError(f"--scores {path}: cannot be written ({error})") from error


def write_scores(path: str | Path, content: Scores) -> None:
    """Write a score file. The file gets its name when it is complete.

    Errors: ``ScoresError``.
    """
    path = Path(path)
    values = {name: getattr(content, name) for name in ARRAYS}
    arrays = {name: np.asarray(value) for name, value in values.items() if value is not None}
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:  # a file object, because numpy would change the file's name
            np.savez(file, **arrays)
        part.rename(path)
    except OSError as error:
        raise ScoresError(f"--scores {path}: cannot be written ({error})") from error


def _part(path: Path) -> Path:
    """The name of the file while it is not yet complete."""
    return path.with_name(f"{path.name}.part")


def read_scores(path: str | Path) -> Scores:
    """Read a file of ``write_scores``.

    Errors: ``ScoresError`` with the file, what is wrong, and the remedy.
    """
    arrays = _read_arrays(path)
    _check_shapes(path, arrays)
    content = Scores(
        scores=arrays["scores"].astype(np.float32),
        labels=arrays["labels"].astype(np.int64),
        paths=arrays["paths"].tolist(),
        average=str(arrays.get("average", "logits")),
        protocol=str(arrays["protocol"]) if "protocol" in arrays else None,
        categories=arrays["categories"].tolist() if "categories" in arrays else None,
        members=arrays["members"].astype(np.float32) if "members" in arrays else None,
        member_names=arrays["member_names"].tolist() if "member_names" in arrays else None,
        path=str(path),
    )
    _check_values(content)
    return content


def _read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file that are in ARRAYS, in that order.

    Errors: ``ScoresError``.
    """
    remedy = "write one with test_models.py --scores"
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with file:
            missing = [name for name in REQUIRED if name not in file]
            if missing:
                raise ScoresError(f"{path}: lacks the array {missing[0]!r}; {remedy}")
            return {name: np.asarray(file[name]) for name in ARRAYS if name in file}
    except FileNotFoundError:
        raise ScoresError(f"{path}: no such file; {remedy}") from None
    except ScoresError:
        raise
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ScoresError(f"{path}: not a score file ({' '.join(str(error).split())}); {remedy}") from None


def _check_shapes(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Check that each array has its kind and shape, and that there is at least one video and one class.

    Errors: ``ScoresError`` for the first array that is wrong.
    """
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        kinds, kind, shape = ARRAYS[name]
        fits = array.ndim == len(shape) and all(
            sizes.setdefault(letter, size) == size for letter, size in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype.kind not in kinds:
            known = ", ".join(f"{letter} {size}" for letter, size in sizes.items())
            raise ScoresError(
                f"{path}: the array {name} is {array.dtype} of shape {array.shape}, must be {kind} "
                f"({', '.join(shape)}){f' with {known}' if known else ''}; write the file with test_models.py --scores"
            )
    if not (sizes["N"] and sizes["K"]):
        shape = arrays["scores"].shape
        raise ScoresError(f"{path}: scores have shape {shape}, nothing to report; test on a list with videos")


def _check_values(file: Scores) -> None:
    """Check that labels are in range, that scores are finite, and that softmax averages are probabilities.

    Errors: ``ScoresError`` with the first value that is wrong.
    """
    path, scores, labels, paths = file.path, file.scores, file.labels, file.paths
    if file.average not in AVERAGES:
        raise ScoresError(f"{path}: average is {file.average!r}, must be one of {', '.join(AVERAGES)}; test again")
    num_classes = scores.shape[1]
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        i = int(outside.argmax())
        raise ScoresError(
            f"{path}: label {labels[i]} of video {i} ({paths[i]}) is not in 0..{num_classes - 1}; "
            "was the list made for another dataset?"
        )
    _check_finite(f"{path}:", scores, paths)
    sums = scores.sum(1, dtype=np.float64)
    wrong = (abs(sums - 1) > 1e-3) | (scores < 0).any(1)
    if file.average == "softmax" and wrong.any():
        i = int(wrong.argmax())
        raise ScoresError(
            f"{path}: average is 'softmax', but scores of video {i} ({paths[i]}) are no probabilities "
            f"(sum {sums[i]:.4g}, lowest {scores[i].min():.4g}); test again, or write average 'logits'"
        )
    for i, member in enumerate([] if file.members is None else file.members):
        _check_finite(f"{path}: member {i + 1}", member, paths)


def _check_finite(where: str, scores: np.ndarray, paths: list[str]) -> None:
    finite = np.isfinite(scores).all(1)
    if not finite.all():
        i = int(finite.argmin())
        value = scores[i][~np.isfinite(scores[i])][0]
        raise ScoresError(f"{where} scores of video {i} ({paths[i]}) hold {value}; test again with --precision fp32")
