"""Shares the clips of a step: global batch = processes x clips per process x accumulation."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch

from .config import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """How the ``global_batch`` clips of a step are shared among processes and forward passes.

    ``per_process`` is the largest number of clips of one process in one forward pass. ``accumulation`` is the number of
    forward passes of a process in one step. If the shares cannot be equal, they differ by one clip. The global batch is
    therefore the recipe's on any number of processes. For example, SDA's 36 clips on 8 processes are four shares of 5
    and four of 4.
    """

    global_batch: int
    processes: int = 1
    accumulation: int = 1

    @property
    def per_process(self) -> int:
        return ceil(self.global_batch / (self.processes * self.accumulation))

    def share(self, clips: list, rank: int, micro_step: int) -> list:
        """The clips of a step that process ``rank`` sees in its ``micro_step``-th forward pass."""
        return clips[micro_step * self.processes + rank :: self.processes * self.accumulation]

    def __str__(self) -> str:
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        most = "" if self.global_batch % (self.processes * self.accumulation) == 0 else "at most "
        return f"{processes} x {most}{self.per_process} clips x {self.accumulation} accumulated = {self.global_batch}"


def plan_batch(global_batch_size: int, batch_size: int | None, processes: int) -> BatchPlan:
    """The plan for a recipe's global batch.

    ``batch_size`` is the largest number of clips of one process in one forward pass. If a process's share is larger
    than ``batch_size``, it accumulates gradients. If ``batch_size`` x processes is larger than the global batch, this
    product becomes the global batch.

    Errors: ``ConfigError`` if a forward pass would have no clip.
    """
    if batch_size and batch_size * processes > global_batch_size:
        return BatchPlan(batch_size * processes, processes)
    accumulation = ceil(global_batch_size / (batch_size * processes)) if batch_size else 1
    if global_batch_size < processes * accumulation:
        raise ConfigError(
            f"global_batch_size {global_batch_size} leaves some of {processes} processes x {accumulation} forward "
            "passes without a clip; raise --batch_size, or run fewer processes"
        )
    return BatchPlan(global_batch_size, processes, accumulation)


class StepSampler:
    """Batch sampler. Each batch is the ``(epoch, index)`` pairs of one forward pass of one process.

    The order of an epoch is a permutation that depends only on seed and epoch. Each step takes the next global batch
    from it. Therefore a step has the same clips on any number of processes, and a resumed run sees no clip of an epoch
    twice. An incomplete last step is left out.

    Set ``epoch`` and ``first_step`` before each pass. The pairs tell the dataset and its loading processes the epoch.
    """

    def __init__(self, num_videos: int, plan: BatchPlan, rank: int, seed: int):
        self.num_videos, self.plan, self.rank, self.seed = num_videos, plan, rank, seed
        self.epoch = self.first_step = 0

    @property
    def steps(self) -> int:
        """The number of steps of a whole epoch."""
        return self.num_videos // self.plan.global_batch

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.plan.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.num_videos, generator=generator).tolist()
        size = self.plan.global_batch
        for step in range(self.first_step, self.steps):
            clips = [(self.epoch, index) for index in order[step * size : (step + 1) * size]]
            for micro_step in range(self.plan.accumulation):
                yield self.plan.share(clips, self.rank, micro_step)
