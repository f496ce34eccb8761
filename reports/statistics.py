"""Statistics of scores: accuracy by class, confusion, calibration, comparisons, and EPIC-KITCHENS' actions."""

from dataclasses import dataclass

import numpy as np

from .accuracy import TOP5, highest
from .scores import Scores, ScoresError


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) int64: the number of videos of the row's class that were predicted as the column's class."""
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Each row of (K, K) counts divided by its sum, float64. The row of a class without videos is NaN."""
    videos = confusion.sum(1, keepdims=True)
    return np.divide(confusion, videos, out=np.full(confusion.shape, np.nan), where=videos > 0)


def confused_pairs(confusion: np.ndarray, count: int = 10) -> list[tuple[int, int, int, int]]:
    """At most ``count`` pairs of classes that are confused most often. Both directions are counted together.

    Each pair is (a, b, videos of a predicted as b, videos of b predicted as a) with a < b. The pair with the highest
    sum comes first. Pairs with equal sums are in label order.
    """
    a, b = np.triu_indices(len(confusion), 1)
    there, back = confusion[a, b], confusion[b, a]
    order = np.argsort(-(there + back), kind="stable")[:count]
    return [tuple(int(x[i]) for x in (a, b, there, back)) for i in order if there[i] + back[i]]


@dataclass(frozen=True)
class ClassResult:
    """Accuracy on the videos of one class in percent (None if not defined), and the most frequent wrong prediction."""

    label: int
    videos: int
    top1: float | None
    top5: float | None
    taken_for: int | None  # the most frequent wrong class; None if no prediction is wrong
    times: int  # the number of videos with that prediction


def class_results(scores: np.ndarray, labels: np.ndarray) -> list[ClassResult]:
    """One ``ClassResult`` for each class, in label order, from scores (N, K) and labels (N,).

    The mean of top1 over the classes that have videos is the mean class accuracy (reported in FineGym's papers).
    """
    num_classes = scores.shape[1]
    ranked = highest(scores, TOP5)  # (N, 5)
    found = ranked == labels[:, None]
    errors = confusion_matrix(labels, ranked[:, 0], num_classes)
    np.fill_diagonal(errors, 0)
    results = []
    for label in range(num_classes):
        mine = labels == label
        videos = int(mine.sum())
        top1, top5 = (100 * float(hits[mine].mean()) if videos else None for hits in (found[:, 0], found.any(1)))
        top5 = top5 if num_classes > TOP5 else None
        other = int(errors[label].argmax())
        times = int(errors[label, other])
        results.append(ClassResult(label, videos, top1, top5, other if times else None, times))
    return results


@dataclass(frozen=True)
class Calibration:
    """Bins of equal width over the confidence from 0 to 1. The values of an empty bin are NaN."""

    videos: np.ndarray  # (bins,) int64
    accuracy: np.ndarray  # (bins,) share of right predictions, 0 to 1
    confidence: np.ndarray  # (bins,) mean probability of the predicted class, 0 to 1
    error: float  # expected calibration error, percent


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Calibration:
    """The expected calibration error of probabilities (N, K) with labels (N,), and its bins.

    A video's confidence is its highest probability. Bin m of M holds the confidences in ((m-1)/M, m/M]. The error is
    the sum over m of n_m/N |acc_m - conf_m|, where n_m, acc_m and conf_m are the number of videos, the accuracy and the
    mean confidence of bin m. Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2,
    equation 3; its Table 1 has M = 15. The error depends on M, so compare only errors with the same M.
    """
    confidence = probabilities.max(1)
    right = highest(probabilities, 1)[:, 0] == labels
    edges = np.arange(bins + 1) / bins
    # Rounding may give a probability above 1, and a probability of 0 would be below the first bin.
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    videos = np.bincount(bin_of, minlength=bins)
    rights, sums = (np.bincount(bin_of, weights=values, minlength=bins) for values in (right, confidence))
    error = 100 * float(abs(rights - sums).sum()) / len(labels)  # n_m/N |acc_m - conf_m| = |rights_m - sums_m| / N
    accuracy, mean = (np.divide(x, videos, out=np.full(bins, np.nan), where=videos > 0) for x in (rights, sums))
    return Calibration(videos, accuracy, mean, error)


@dataclass(frozen=True)
class Comparison:
    """How the predictions of b differ from the predictions of a on the same N videos."""

    same: int  # videos with the same prediction
    both: int  # right by a and by b
    only_a: int  # right by a only: right->wrong
    only_b: int  # right by b only: wrong->right
    neither: int
    p_value: float  # of mcnemar(only_a, only_b)
    changed: list[tuple[int, str]]  # videos with another prediction: right->wrong, wrong->right or other


def compare(a: Scores, b: Scores) -> Comparison:
    """Compare two score files of the same videos.

    Errors: ``ScoresError`` if videos, labels or the number of classes differ.
    """
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
    """Check that both files have the same paths in the same order.

    Errors: ``ScoresError`` if they do not.
    """
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

    On n = ``only_a`` + ``only_b`` videos, exactly one classifier is right. If both are equally good, each of these
    videos favours either classifier with probability 1/2. Therefore p = min(1, 2 P(X <= min(only_a, only_b))) with X
    binomial (n, 1/2). The sum is computed in integers, each binomial coefficient from the one before it. Only the last
    division rounds (p below 5e-324 becomes 0). The test assumes that the videos are independent. It does not include
    the variation between training seeds.
    Source: McNemar, Psychometrika 12 (1947); for classifiers Dietterich, Neural Computation 10 (1998).
    """
    n = only_a + only_b
    coefficient = total = 1
    for i in range(min(only_a, only_b)):
        coefficient = coefficient * (n - i) // (i + 1)  # the binomial coefficient "n over i + 1"
        total += coefficient
    return min(1.0, 2 * total / 2**n)


def action_accuracy(verb: Scores, noun: Scores) -> dict[str, float]:
    """``top1 top5`` in percent of EPIC-KITCHENS' actions, from one file of verbs and one of nouns of the same segments.

    The probability of the action (v, n) is softmax(verb scores)[v] * softmax(noun scores)[n]. The Top-5 are the five
    pairs with the highest products. They use only the five most probable verbs and the five most probable nouns,
    because otherwise five better pairs would exist. Therefore 25 products per segment are enough instead of all 125 x
    352. If products are equal, the pair with the more probable verb comes first.

    Errors: ``ScoresError`` if the two files have different segments.
    """
    check_same_videos(verb, noun)
    verb_p, noun_p = verb.probabilities, noun.probabilities
    verbs, nouns = highest(verb_p, 5), highest(noun_p, 5)
    products = np.take_along_axis(verb_p, verbs, 1)[:, :, None] * np.take_along_axis(noun_p, nouns, 1)[:, None]
    right = (verbs == verb.labels[:, None])[:, :, None] & (nouns == noun.labels[:, None])[:, None]  # (N, 5, 5)
    n = len(verb.labels)
    best = highest(products.reshape(n, -1), 5)  # (N, 25) -> (N, 5)
    hits = np.take_along_axis(right.reshape(n, -1), best, 1)
    return {"top1": 100 * float(hits[:, 0].mean()), "top5": 100 * float(hits.any(1).mean())}
