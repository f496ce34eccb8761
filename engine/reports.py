"""What score files say, from their arrays alone: accuracy by class, confusion, calibration, comparisons, EPIC actions.

numpy only. A tie between two classes goes to the lower label throughout.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# array -> kinds of its numpy dtype, the same in words, its shape; N videos, K classes, M members of an ensemble
ARRAYS = {
    "scores": ("f", "floats", "NK"),
    "labels": ("iu", "whole numbers", "N"),
    "paths": ("U", "strings", "N"),
    "members": ("f", "floats", "MNK"),
    "member_names": ("U", "strings", "M"),
    "categories": ("U", "strings", "K"),
    "average": ("U", "a string", ""),
    "protocol": ("U", "a string", ""),
}
REQUIRED = ("scores", "labels", "paths")
AVERAGES = ("logits", "softmax")
TOP5 = 5  # of as many classes or fewer, every video has its label among the first five: Top-5 is not defined


class ScoresError(ValueError):
    """A score file that cannot be reported on; the message is one line with the value and the remedy."""


@dataclass(frozen=True)
class Scores:
    """A score file, in list order. What a file does not hold is None; ``average`` then is ``"logits"``."""

    path: str
    scores: np.ndarray  # (N, K) float32
    labels: np.ndarray  # (N,) int64
    paths: list[str]  # N
    average: str
    protocol: str | None
    categories: list[str] | None  # K
    members: np.ndarray | None  # (M, N, K) float32
    member_names: list[str] | None  # M

    @property
    def predictions(self) -> np.ndarray:
        """The label of the highest score: (N,) int64."""
        return self.scores.argmax(1)

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the mean logits, or the scores themselves where they are mean probabilities: (N, K) float64."""
        return softmax(self.scores) if self.average == "logits" else self.scores.astype(np.float64)


def read_scores(path: str | Path) -> Scores:
    """A file that ``test_models.py --scores`` wrote. Errors: ``ScoresError`` with the file, what is wrong, a remedy."""
    arrays = _read_arrays(path)
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
    average = str(arrays.get("average", "logits"))
    if average not in AVERAGES:
        raise ScoresError(f"{path}: average is {average!r}, must be one of {', '.join(AVERAGES)}; test again")
    scores, labels, paths = arrays["scores"].astype(np.float32), arrays["labels"], arrays["paths"].tolist()
    _check_values(path, scores, labels, paths, average)
    members = arrays.get("members")
    for i, member in enumerate([] if members is None else members):
        _check_finite(f"{path}: member {i + 1}", member, paths)
    return Scores(
        str(path),
        scores,
        labels.astype(np.int64),
        paths,
        average,
        str(arrays["protocol"]) if "protocol" in arrays else None,
        arrays["categories"].tolist() if "categories" in arrays else None,
        None if members is None else members.astype(np.float32),
        arrays["member_names"].tolist() if "member_names" in arrays else None,
    )


def _read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays that we know, in the order of ARRAYS."""
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


def _check_values(path: str | Path, scores: np.ndarray, labels: np.ndarray, paths: list[str], average: str) -> None:
    num_classes = scores.shape[1]
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        i = int(outside.argmax())
        raise ScoresError(
            f"{path}: label {labels[i]} of video {i} ({paths[i]}) is not in 0..{num_classes - 1}; "
            "was the list made for another dataset?"
        )
    _check_finite(f"{path}:", scores, paths)
    if average == "logits":
        return
    sums = scores.sum(1, dtype=np.float64)
    wrong = (abs(sums - 1) > 1e-3) | (scores < 0).any(1)
    if wrong.any():
        i = int(wrong.argmax())
        raise ScoresError(
            f"{path}: average is 'softmax', but scores of video {i} ({paths[i]}) are no probabilities "
            f"(sum {sums[i]:.4g}, lowest {scores[i].min():.4g}); test again, or write average 'logits'"
        )


def _check_finite(where: str, scores: np.ndarray, paths: list[str]) -> None:
    finite = np.isfinite(scores).all(1)
    if not finite.all():
        i = int(finite.argmin())
        value = scores[i][~np.isfinite(scores[i])][0]
        raise ScoresError(f"{where} scores of video {i} ({paths[i]}) hold {value}; test again with --precision fp32")


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) float64 of logits (N, K)."""
    scores = scores.astype(np.float64)
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def top_hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether the label is among the ``k`` highest scores (all, if K < k): (N,) bool of (N, K) and (N,)."""
    return (_highest(scores, k) == labels[:, None]).any(1)


def _highest(scores: np.ndarray, k: int) -> np.ndarray:
    """The labels of the ``k`` highest scores, highest first: (N, min(k, K))."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) int64: how many videos of the row's class were taken for the column's."""
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Each row of (K, K) counts divided by its sum, float64; a class without videos is a row of NaN."""
    videos = confusion.sum(1, keepdims=True)
    return np.divide(confusion, videos, out=np.full(confusion.shape, np.nan), where=videos > 0)


def confused_pairs(confusion: np.ndarray, count: int = 10) -> list[tuple[int, int, int, int]]:
    """The pairs of classes most often taken for each other, both directions counted together, at most ``count``.

    (a, b, videos of a taken for b, videos of b taken for a) with a < b; highest sum first, ties in label order.
    """
    a, b = np.triu_indices(len(confusion), 1)
    there, back = confusion[a, b], confusion[b, a]
    order = np.argsort(-(there + back), kind="stable")[:count]
    return [tuple(int(x[i]) for x in (a, b, there, back)) for i in order if there[i] + back[i]]


@dataclass(frozen=True)
class ClassResult:
    """Accuracy on one class's videos in percent, None if not defined, and what these are most often taken for."""

    label: int
    videos: int
    top1: float | None
    top5: float | None
    taken_for: int | None  # another class; None where no video is taken for another
    times: int


def class_results(scores: np.ndarray, labels: np.ndarray) -> list[ClassResult]:
    """One ``ClassResult`` a class, in label order, of scores (N, K) and labels (N,).

    The mean of top1 over the classes that have videos is the mean class accuracy (what FineGym's papers print).
    """
    num_classes = scores.shape[1]
    hits1, hits5 = top_hits(scores, labels, 1), top_hits(scores, labels, 5)
    errors = confusion_matrix(labels, scores.argmax(1), num_classes)
    np.fill_diagonal(errors, 0)
    results = []
    for label in range(num_classes):
        mine = labels == label
        videos = int(mine.sum())
        top1, top5 = (100 * float(hits[mine].mean()) if videos else None for hits in (hits1, hits5))
        top5 = top5 if num_classes > TOP5 else None
        other = int(errors[label].argmax())
        times = int(errors[label, other])
        results.append(ClassResult(label, videos, top1, top5, other if times else None, times))
    return results


@dataclass(frozen=True)
class Calibration:
    """Bins of equal width over the confidence, from 0 to 1; accuracy and confidence are NaN in an empty bin."""

    videos: np.ndarray  # (bins,) int64
    accuracy: np.ndarray  # (bins,) share of right predictions, 0 to 1
    confidence: np.ndarray  # (bins,) mean probability of the predicted class, 0 to 1
    error: float  # expected calibration error, percent


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Calibration:
    """The expected calibration error of probabilities (N, K) with labels (N,), and the bins that make it.

    A video's confidence is its highest probability. Bin m of M holds the confidences in ((m-1)/M, m/M]; the error is
    the mean over videos of |accuracy - mean confidence| of their bins: sum over m of n_m/N |acc_m - conf_m|.
    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2, equation 3; its Table 1 has
    M = 15. The error depends on M: it is not to be compared between numbers of bins.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    edges = np.arange(bins + 1) / bins
    # Rounding may lift a probability past 1; what is 0 would lie below the first bin.
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    videos = np.bincount(bin_of, minlength=bins)
    rights, sums = (np.bincount(bin_of, weights=values, minlength=bins) for values in (right, confidence))
    error = 100 * float(abs(rights - sums).sum()) / len(labels)  # n_m/N |acc_m - conf_m| = |rights_m - sums_m| / N
    accuracy, mean = (np.divide(x, videos, out=np.full(bins, np.nan), where=videos > 0) for x in (rights, sums))
    return Calibration(videos, accuracy, mean, error)


@dataclass(frozen=True)
class Comparison:
    """How the predictions of b differ from those of a on the same N videos."""

    same: int  # videos with the same prediction
    both: int  # right by a and by b
    only_a: int  # right by a alone: right->wrong
    only_b: int  # right by b alone: wrong->right
    neither: int
    p_value: float  # of mcnemar(only_a, only_b)
    changed: list[tuple[int, str]]  # videos of another prediction, with right->wrong, wrong->right or other


def compare(a: Scores, b: Scores) -> Comparison:
    """Compare two score files of the same videos. Errors: ``ScoresError`` if videos, labels or classes differ."""
    check_same_videos(a, b)
    if a.scores.shape != b.scores.shape:
        raise ScoresError(
            f"{b.path}: {b.scores.shape[1]} classes, {a.path} has {a.scores.shape[1]}; test both on the same dataset"
        )
    if (a.labels != b.labels).any():
        i = int((a.labels != b.labels).argmax())
        raise ScoresError(
            f"{b.path}: label {b.labels[i]} for video {i} ({b.paths[i]}), {a.path} has {a.labels[i]}; "
            "test both on the same list"
        )
    first, second = a.predictions, b.predictions
    right_a, right_b = first == a.labels, second == b.labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    changes = np.where(right_a, "right->wrong", np.where(right_b, "wrong->right", "other"))
    return Comparison(
        same=int((first == second).sum()),
        both=int((right_a & right_b).sum()),
        only_a=only_a,
        only_b=only_b,
        neither=int((~right_a & ~right_b).sum()),
        p_value=mcnemar(only_a, only_b),
        changed=[(int(i), str(changes[i])) for i in np.flatnonzero(first != second)],
    )


def check_same_videos(a: Scores, b: Scores) -> None:
    """Errors: ``ScoresError`` unless both files hold the same paths in the same order."""
    if a.paths == b.paths:
        return
    remedy = "test both on the same list"
    if len(a.paths) != len(b.paths):
        raise ScoresError(f"{b.path}: {len(b.paths)} videos, {a.path} has {len(a.paths)}; {remedy}")
    i = next(i for i, (x, y) in enumerate(zip(a.paths, b.paths, strict=True)) if x != y)
    order = ", the same videos in another order" if sorted(a.paths) == sorted(b.paths) else ""
    raise ScoresError(f"{b.path}: video {i} is {b.paths[i]!r}, in {a.path} {a.paths[i]!r}{order}; {remedy}")


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p-value of McNemar's exact test of two classifiers on the same videos.

    Of n = ``only_a`` + ``only_b`` videos that one alone gets right, were both equally good, each would fall to either
    with probability 1/2: p = min(1, 2 P(X <= min(only_a, only_b))), X binomial (n, 1/2). In whole numbers, the binomial
    coefficients of ``math.comb`` one from the last, so that p is exact but for the last division (0 below 5e-324).
    The videos must be independent draws; the test knows nothing of other seeds of the same training.
    Source: McNemar, Psychometrika 12 (1947); for classifiers Dietterich, Neural Computation 10 (1998).
    """
    n = only_a + only_b
    coefficient = total = 1
    for i in range(min(only_a, only_b)):
        coefficient = coefficient * (n - i) // (i + 1)  # n over i + 1
        total += coefficient
    return min(1.0, 2 * total / 2**n)


def action_accuracy(verb: Scores, noun: Scores) -> dict[str, float]:
    """``top1 top5`` in percent of EPIC-KITCHENS' actions, from one file of verbs and one of nouns on the same segments.

    The probability of the action (v, n) is softmax(verb scores)[v] * softmax(noun scores)[n]; its Top-5 are the five
    pairs of highest product. Each of those five is of the five likeliest verbs and the five likeliest nouns (otherwise
    five better ones exist), so that 25 products a segment are enough, not all 125 x 352. Of equal products, the one of
    the likelier verb comes first. Errors: ``ScoresError`` if the segments differ.
    """
    check_same_videos(verb, noun)
    verb_p, noun_p = verb.probabilities, noun.probabilities
    verbs, nouns = _highest(verb_p, 5), _highest(noun_p, 5)
    products = np.take_along_axis(verb_p, verbs, 1)[:, :, None] * np.take_along_axis(noun_p, nouns, 1)[:, None]
    right = (verbs == verb.labels[:, None])[:, :, None] & (nouns == noun.labels[:, None])[:, None]  # (N, 5, 5)
    n = len(verb.labels)
    best = _highest(products.reshape(n, -1), 5)  # (N, 25) -> (N, 5)
    hits = np.take_along_axis(right.reshape(n, -1), best, 1)
    return {"top1": 100 * float(hits[:, 0].mean()), "top5": 100 * float(hits.any(1).mean())}
