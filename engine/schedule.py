"""The learning rate of each epoch, and which epochs are validated. Epochs start at 0."""

import math

from .config import Recipe


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The learning rate of an epoch, without the multipliers of the parameter groups."""
    if recipe.schedule == "cosine":
        return warmup_cosine(epoch, recipe.epochs, recipe.lr, recipe.warmup_epochs, recipe.min_lr_ratio)
    return multi_step(epoch, recipe.lr, recipe.lr_steps, recipe.lr_decay)


def is_validated(recipe: Recipe, epoch: int) -> bool:
    """Whether an epoch ends with a validation."""
    done = epoch + 1
    return done % recipe.eval_every == 0 or done > recipe.epochs - max(1, recipe.eval_last)


def warmup_cosine(epoch: int, epochs: int, lr: float, warmup_epochs: int = 5, min_lr_ratio: float = 1e-3) -> float:
    """The released RSA schedule: linear warm-up, then half a cosine down to ``lr * min_lr_ratio``.

    The released code advances its counter before the first epoch. Therefore epoch 0 has the value of step 1, and the
    peak is in epoch ``warmup_epochs - 1``.
    """
    step = epoch + 1
    if step < warmup_epochs:
        done = step / warmup_epochs
        return lr * (min_lr_ratio * (1 - done) + done)
    lowest = lr * min_lr_ratio
    # max() prevents a division by zero if the run is as short as its warm-up.
    progress = (step - warmup_epochs) / max(1, epochs - warmup_epochs)
    return lowest + (lr - lowest) * (1 + math.cos(math.pi * progress)) / 2


def multi_step(epoch: int, lr: float, lr_steps: list[int], lr_decay: float = 0.1) -> float:
    """The schedule of TSM and SDA: ``lr`` is multiplied by ``lr_decay`` at each epoch of ``lr_steps``."""
    return lr * lr_decay ** sum(epoch >= step for step in lr_steps)
