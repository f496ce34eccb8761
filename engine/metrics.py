"""Accuracy."""

import math

import numpy as np
import torch
from torch import Tensor

from .reports import TOP5


def describe_top5(num_classes: int) -> str:
    """A line for the log where Prec@5 says nothing; else nothing."""
    return f"Prec@5 is not defined for {num_classes} classes and stands as nan" if num_classes <= TOP5 else ""


def shown(percent: float, undefined: str = "not defined") -> str:
    """An accuracy for a reader."""
    return undefined if math.isnan(percent) else f"{percent:.2f}"


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of logits (N,K) have the label (N) first, and among the first five (all, if K < 5): float (2,)."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([top[:, 0].sum(), top.any(1).sum()]).to(logits.dtype)


def accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``top1 top5 class_accuracy`` in percent of scores (N,K) and labels (N).

    The class accuracy is the mean over the classes that occur among the labels; ``top5`` is NaN for K of at most 5.
    """
    top1, top5 = count_correct(torch.from_numpy(scores), torch.from_numpy(labels)).tolist()
    top5 = top5 if scores.shape[1] > TOP5 else math.nan
    hit = scores.argmax(1) == labels
    per_class = [hit[labels == label].mean() for label in np.unique(labels)]
    n = len(labels)
    return {"top1": 100 * top1 / n, "top5": 100 * top5 / n, "class_accuracy": 100 * float(np.mean(per_class))}
