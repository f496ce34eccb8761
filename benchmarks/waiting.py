"""Simulates GPUs that wait for data: the part of ``benchmarks.scaling --simulate`` that computes."""

import numpy as np

from engine.loading import PREFETCH

DEVIATION = 0.5  # of the time of a clip, relative to its mean
SPREAD = np.log(1 + DEVIATION**2)  # the variance of the logarithm
STALL, STALL_SHARE = 20, 1e-3  # a stalled batch takes as much longer as 20 steps
RATIOS = (0.9, 1.0, 1.1, 1.25, 1.5, 2.0)


def waiting_share(making: np.ndarray, workers: int, prefetch: int = PREFETCH, warm_up: int = 0) -> np.ndarray:
    """The share of time in which GPUs wait for data.

    The computing of a step takes the time 1. ``making`` (steps, ..., G) is the time that a loading process needs for
    the batch of each step and GPU. The rules are those of ``DataLoader``: the ``workers`` processes of a GPU take its
    batches in turn, a batch is ordered when the one ``workers * prefetch`` before it is taken, and batches are taken in
    order. A step starts when the slowest GPU has its batch, because all GPUs end it together. The result has the shape
    (...). The first ``warm_up`` steps do not count.
    """
    ready, taken, ends = np.zeros_like(making), np.zeros_like(making), np.zeros(making.shape[:-1])
    for k in range(len(making)):
        begin = ready[k - workers] if k >= workers else 0.0
        if k >= workers * prefetch:
            begin = np.maximum(begin, taken[k - workers * prefetch])
        ready[k] = begin + making[k]
        taken[k] = np.maximum(ready[k], ends[k - 1][..., None]) if k else ready[k]
        ends[k] = taken[k].max(-1) + 1
    start = ends[warm_up - 1] if warm_up else 0.0
    return np.maximum(0, 1 - (len(making) - warm_up) / (ends[-1] - start))


def simulate(
    gpus: list[int], workers: int, steps: int = 20_000, clips: int = 8, seed: int = 0
) -> tuple[str, list[str], list[list[str]]]:
    """What is simulated in one sentence, and the head and the rows of a table of waiting shares."""
    ratios, rows = np.array(RATIOS)[:, None], []
    kinds = {"varied": f"log-normal times of clips, deviation {DEVIATION:g} of the mean"}
    kinds = {"even": "all clips take the same time"} | kinds
    kinds |= {"stalls": f"1 batch in {1 / STALL_SHARE:.0f} takes {STALL} steps longer, else even"}
    kinds |= {"deep": f"the same stalls, {2 * PREFETCH} batches ready in each process"}
    for kind, told in kinds.items():
        for count in gpus:
            rng, shape = np.random.default_rng(seed), (steps, 1, count)
            making = np.broadcast_to(workers / ratios, (steps, len(RATIOS), count))
            if kind == "varied":  # log-normal of mean 1
                making = making * rng.lognormal(-SPREAD / 2, SPREAD**0.5, (*shape, clips)).mean(-1)
            if kind in ("stalls", "deep"):  # the other batches take less, so that the mean stays
                making = making + STALL * ((rng.random(shape) < STALL_SHARE) - STALL_SHARE)
            prefetch = 2 * PREFETCH if kind == "deep" else PREFETCH
            shares = waiting_share(making, workers, prefetch, warm_up=steps // 10)
            rows.append([told, str(count), *(f"{100 * share:.1f} %" for share in shares)])
    title = "Share of the time that GPUs wait for data, by the mean speed of the loader / the speed of the GPUs; "
    title += f"{steps} steps, {workers} loading processes a GPU, {PREFETCH} batches of {clips} clips ready in each"
    return title, ["loading", "GPUs", *(f"{ratio:g}" for ratio in RATIOS)], rows
