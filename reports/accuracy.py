"""Accuracy of scores. One rule is used everywhere: if two scores are equal, the lower label ranks first."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TOP5 = 5  # with at most five classes, every label is among the first five, so Top-5 is not defined


def highest(scores: Tensor | np.ndarray, k: int) -> Tensor | np.ndarray:
    """The labels of the ``k`` highest of scores (N, K), highest first: (N, min(k, K)) int64, an array or a tensor.

    If scores are equal, the lower label comes first. Training, testing and reports all use this function, so they agree
    on every prediction. ``topk`` and ``argmax`` do not define the order of equal scores.
    """
    labels = torch.as_tensor(scores).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return labels if isinstance(scores, Tensor) else labels.numpy()


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of logits (N,K) rank their label (N) first, and how many in the first five: (2,), in their dtype."""
    found = highest(logits, TOP5) == labels[:, None]
    return torch.stack([found[:, 0].sum(), found.any(1).sum()]).to(logits.dtype)


def means(sums: Sequence[float], num_classes: int) -> tuple[float, float, float]:
    """Mean loss, Top-1 and Top-5 in percent, from the sums of loss, hits, hits among the first five, and clips.

    Without clips all three are NaN. With at most five classes, Top-5 is NaN.
    """
    loss, top1, top5, clips = sums
    if not clips:
        return (math.nan,) * 3
    return loss / clips, 100 * top1 / clips, 100 * top5 / clips if num_classes > TOP5 else math.nan


def accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``top1 top5 class_accuracy`` in percent of scores (N,K) and labels (N).

    The class accuracy is the mean over the classes that occur among the labels; ``top5`` is NaN if K is at most 5.
    """
    found = highest(scores, TOP5) == labels[:, None]  # (N, 5)
    first = found[:, 0]
    _, top1, top5 = means((0.0, int(first.sum()), int(found.any(1).sum()), len(labels)), scores.shape[1])
    per_class = [first[labels == label].mean() for label in np.unique(labels)]
    return {"top1": top1, "top5": top5, "class_accuracy": 100 * float(np.mean(per_class))}


def describe_top5(num_classes: int) -> str:
    """A line for the log if Prec@5 is not defined, otherwise an empty text."""
    return f"Prec@5 is not defined for {num_classes} classes and stands as nan" if num_classes <= TOP5 else ""


def percent_text(percent: float, undefined: str = "not defined") -> str:
    """An accuracy as text with two decimals, or ``undefined`` for NaN."""
    return undefined if math.isnan(percent) else f"{percent:.2f}"
