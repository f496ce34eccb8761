"""Temporal adaptive module (TAM, ICCV 2021, arXiv 2005.06803, section 3) in plain PyTorch, the module of TANet.

Each video and channel gets its own temporal kernel of three taps. Letters: N videos, T frames, C channels.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 3  # the previous frame, the frame itself, the next frame


class TimeLinear(nn.Linear):
    """A linear layer whose features are the frames or the taps of a kernel.

    The release has one group of parameters, with a factor of 5, for the weights of all linear layers.
    """

    optim_group = "tam"


class TAM(nn.Module):
    r"""Weight the frames by a local branch L and filter them over time with the kernels of a global branch G.

    .. math::
        p_{nct} &= \mathrm{mean}_{HW}(x_{nct}) \qquad
        s = \sigma(V_2\,\mathrm{ReLU}(\mathrm{BN}(V_1 p))) \qquad
        a_{nc} = \mathrm{softmax}(W_2\,\mathrm{ReLU}(\mathrm{BN}(W_1 p_{nc}))) \\
        y_{nct} &= \sum_{k=0}^{2} a_{nck}\, s_{nc,t+k-1}\, x_{nc,t+k-1}

    Frames outside the clip are zero. L (section 3.2, local branch) convolves p over time. G (section 3.2, global
    branch) has one set of weights for all channels: its rows are the N*C time series of p, and its BN sees N*C rows.
    As released, everything has PyTorch's initialisation. A new TAM therefore does not start as the identity: it
    averages three frames and halves them.

    Args:
        channels: C of the input.
        num_segments: T. The shapes of G's parameters depend on it.
        alpha: G has ``alpha * T`` hidden features.
        beta: L has ``C // beta`` hidden channels.

    Shapes: ``(N*T, C, H, W) -> (N*T, C, H, W)``.

    Errors: ``ValueError`` if the number of frames is not a multiple of ``num_segments``.

    Source: the paper and the authors' release (github.com/liu-zhy/temporal-adaptive-module).
    """

    sized_by_segments: ClassVar = {"G.0.weight": 1}

    def __init__(self, channels: int, num_segments: int, alpha: int = 2, beta: int = 4):
        super().__init__()
        self.num_segments = num_segments
        hidden, reduced = alpha * num_segments, channels // beta
        self.G = nn.Sequential(
            TimeLinear(num_segments, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            TimeLinear(hidden, TAPS, bias=False),
            nn.Softmax(-1),
        )
        self.L = nn.Sequential(
            nn.Conv1d(channels, reduced, 3, padding=1, bias=False),
            nn.BatchNorm1d(reduced),
            nn.ReLU(inplace=True),
            nn.Conv1d(reduced, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % self.num_segments:
            raise ValueError(f"{x.shape[0]} frames are not a multiple of num_segments {self.num_segments}")
        # The branches are tiny, so they keep the precision of the weights.
        pooled = x.mean((2, 3), dtype=self.G[0].weight.dtype).unflatten(0, (-1, self.num_segments)).mT  # (N, C, T)
        with torch.autocast(x.device.type, enabled=False):
            kernels = self.G(pooled.flatten(0, 1)).unflatten(0, (-1, x.shape[1]))  # (N, C, 3)
            importance = self.L(pooled)  # (N, C, T)
        # The weighted frames are not stored: their weights are multiplied into the kernels.
        importance = importance.mT  # (N, T, C)
        padded = F.pad(importance, (0, 0, 1, 1))
        around = torch.stack([padded[:, :-2], importance, padded[:, 2:]])  # (3, N, T, C), for frames t - 1, t, t + 1
        factors = (kernels.movedim(-1, 0)[:, :, None] * around).flatten(1, 2)[..., None, None]  # (3, N*T, C, 1, 1)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # plain operations for compilers and exporters
            return _filtered_by_pad(x, factors, self.num_segments)
        return _Filter.apply(x, factors, self.num_segments)


class _Filter(torch.autograd.Function):
    """``y[t] = f[0,t] x[t-1] + f[1,t] x[t] + f[2,t] x[t+1]`` without copies of x or of its weighted frames.

    Shapes: x ``(N*T, C, H, W)`` and f ``(3, N*T, C, 1, 1)``, which is 0 for frames outside the clip.
    """

    @staticmethod
    def forward(ctx, x: Tensor, factors: Tensor, num_segments: int) -> Tensor:
        ctx.save_for_backward(x, factors)
        ctx.num_segments = num_segments
        before, here, after = factors.to(x.dtype).unflatten(1, (-1, num_segments))  # each (N, T, C, 1, 1)
        y = x * here.flatten(0, 1)
        source, target = x.unflatten(0, (-1, num_segments)), y.unflatten(0, (-1, num_segments))  # (N, T, C, H, W)
        target[:, 1:].addcmul_(source[:, :-1], before[:, 1:])
        target[:, :-1].addcmul_(source[:, 1:], after[:, :-1])
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, factors = ctx.saved_tensors
        num_segments, of_x, of_factors = ctx.num_segments, None, None
        if ctx.needs_input_grad[0]:
            before, here, after = factors.unflatten(1, (-1, num_segments))
            # Frame t is the previous frame of t + 1 and the next frame of t - 1.
            ends = (0, 0, 0, 0, 0, 0)
            turned = [F.pad(after[:, :-1], (*ends, 1, 0)), here, F.pad(before[:, 1:], (*ends, 0, 1))]
            of_x = _Filter.apply(gradient, torch.stack(turned).flatten(1, 2), num_segments)
        if ctx.needs_input_grad[1]:
            g, x = gradient.unflatten(0, (-1, num_segments)), x.unflatten(0, (-1, num_segments))
            here = _dots(g, x, factors.dtype)
            before = F.pad(_dots(g[:, 1:], x[:, :-1], factors.dtype), (0, 0, 1, 0))
            after = F.pad(_dots(g[:, :-1], x[:, 1:], factors.dtype), (0, 0, 0, 1))
            of_factors = torch.stack([before, here, after]).flatten(1, 2)[..., None, None]
        return of_x, of_factors, None


def _dots(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Dot products over the pixels, ``(N, t, C, H, W) -> (N, t, C)``."""
    return (a * b).sum((3, 4), dtype=dtype)


def _filtered_by_pad(x: Tensor, factors: Tensor, num_segments: int) -> Tensor:
    x = x.unflatten(0, (-1, num_segments))  # (N, T, C, H, W)
    before, here, after = factors.to(x.dtype).unflatten(1, (-1, num_segments))
    padded = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 1))
    return (padded[:, :-2] * before + x * here + padded[:, 2:] * after).flatten(0, 1)  # (N*T, C, H, W)
