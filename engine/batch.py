"""The clips of a step: processes x clips of a process x accumulation = global batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch

from .config import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """How the ``global_batch`` clips of a step are shared out.

    ``per_process`` is the most clips of one process in one forward pass, ``accumulation`` how many such passes a step
    has. Shares that do not come out even differ by one clip, so that the global batch is what the recipe says on any
    number of processes (SDA's 36 on 8: four of 5 and four of 4).
    """

    global_batch: int
    processes: int = 1
    accumulation: int = 1

    @property
    def per_process(self) -> int:
        return ceil(self.global_batch / (self.processes * self.accumulation))

    def share(self, clips: list[int], rank: int, micro_step: int) -> list[int]:
        """The clips of a step that process ``rank`` sees in its ``micro_step``-th forward pass."""
        return clips[micro_step * self.processes + rank :: self.processes * self.accumulation]

    def __str__(self) -> str:
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        most = "" if self.global_batch % (self.processes * self.accumulation) == 0 else "at most "
        return f"{processes} x {most}{self.per_process} clips x {self.accumulation} accumulated = {self.global_batch}"


def plan_batch(global_batch_size: int, batch_size: int | None, processes: int) -> BatchPlan:
    """The plan for a recipe's global batch and, if given, the most clips of one process in one forward pass.

    A process that takes less than its share at once accumulates gradients; ``batch_size`` x processes beyond the
    global batch becomes the global batch. Errors: ``ConfigError`` if a forward pass would be left without a clip.
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
    """Batch sampler: the clips of each forward pass of one process, from ``first_step`` on.

    The order of an epoch is a permutation that depends on seed and epoch alone, and a step takes the next global batch
    of it: whatever the number of processes, the same clips make the same step, and a run goes on from a step without
    one clip seen twice. The last incomplete step is left out.
    """

    def __init__(self, num_videos: int, plan: BatchPlan, rank: int, seed: int):
        self.num_videos, self.plan, self.rank, self.seed = num_videos, plan, rank, seed
        self.epoch = self.first_step = 0

    @property
    def steps(self) -> int:
        """Steps of a whole epoch."""
        return self.num_videos // self.plan.global_batch

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.plan.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.num_videos, generator=generator).tolist()
        size = self.plan.global_batch
        for step in range(self.first_step, self.steps):
            clips = order[step * size : (step + 1) * size]
            for micro_step in range(self.plan.accumulation):
                yield self.plan.share(clips, self.rank, micro_step)
