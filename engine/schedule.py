"""Learning rates, one for each epoch (counted from 0)."""

import math

from .config import Recipe


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The learning rate of an epoch, before the groups' multipliers."""
    if recipe.schedule == "cosine":
        return warmup_cosine(epoch, recipe.epochs, recipe.lr, recipe.warmup_epochs, recipe.min_lr_ratio)
    return multi_step(epoch, recipe.lr, recipe.lr_steps, recipe.lr_decay)


def is_validated(recipe: Recipe, epoch: int) -> bool:
    """Whether an epoch ends with a validation."""
    done = epoch + 1
    return done % recipe.eval_every == 0 or done > recipe.epochs - max(1, recipe.eval_last)


def warmup_cosine(epoch: int, epochs: int, lr: float, warmup_epochs: int = 5, min_lr_ratio: float = 1e-3) -> float:
    """The released RSA schedule: linear warm-up, then half a cosine down to ``lr * min_lr_ratio``.

    Its counter is advanced before the first epoch, so epoch 0 already has the value of step 1 and the peak is reached
    in epoch ``warmup_epochs - 1``.
    """
    step = epoch + 1
    if step < warmup_epochs:
        done = step / warmup_epochs
        return lr * (min_lr_ratio * (1 - done) + done)
    lowest = lr * min_lr_ratio
    # One epoch after the warm-up at least, so that a run as short as its warm-up still has a schedule.
    progress = (step - warmup_epochs) / max(1, epochs - warmup_epochs)
    return lowest + (lr - lowest) * (1 + math.cos(math.pi * progress)) / 2


def multi_step(epoch: int, lr: float, lr_steps: list[int], lr_decay: float = 0.1) -> float:
    """TSM's and SDA's schedule: ``lr`` times ``lr_decay`` for each of ``lr_steps`` already reached."""
    return lr * lr_decay ** sum(epoch >= step for step in lr_steps)
