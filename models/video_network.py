"""The video network around a frame network: dropout, classifier, mean over frames, freezing, saving memory."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torchvision.models import ResNet50_Weights

STEM = "base_model.conv1.weight"


@dataclass(frozen=True)
class ImageNetFile:
    """The file that a frame network starts from with ``pretrained="imagenet"``."""

    name: str  # in messages
    url: str  # its name ends in a hash, which torch.hub checks


RESNET50 = ImageNetFile("ImageNet ResNet-50", ResNet50_Weights.IMAGENET1K_V1.url)


class SizeError(ValueError):
    """A height or width of frames that the network cannot take. The message names sizes that it takes."""


class WithAuxiliary(NamedTuple):
    """The output of a network with an auxiliary head in training mode. Both are ``(N, K)``."""

    logits: Tensor
    aux_logits: Tensor


class Block(nn.Module):
    """A block of a frame network: ``compute`` is its forward pass, ``join`` adds residual branch and shortcut."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.join = Join()  # or stochastic depth
        self.recompute = False  # save only the input and recompute the rest in the backward pass

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and self.training and torch.is_grad_enabled():
            contexts = (nullcontext(), _keeping_statistics(self))
            return checkpoint(self.compute, x, use_reentrant=False, context_fn=lambda: contexts)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """The forward pass."""
        raise NotImplementedError


@contextmanager
def _keeping_statistics(block: nn.Module) -> Iterator[None]:
    """Do not update the running statistics of BN, because the second forward pass sees the same batch again."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Switching off track_running_stats would save other tensors than the first pass, and checkpoint() refuses that.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


class Join(nn.Module):
    """The sum of a residual branch and a shortcut. Both are ``(N*T, C, H, W)``."""

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch + shortcut


class VideoStochasticDepth(Join):
    """Drops the residual branch with probability ``p`` for whole videos: one random draw for all T frames.

    Branches that are kept are multiplied by ``1 / (1 - p)``. Product and sum are one step, because a product of its own
    would cost as much time as the sum.
    """

    def __init__(self, p: float, num_segments: int):
        super().__init__()
        self.p, self.num_segments = p, num_segments

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        if not self.training:
            return super().forward(branch, shortcut)
        kept = 1 - self.p
        factors = branch.new_empty(len(branch) // self.num_segments).bernoulli_(kept)  # (N)
        if kept > 0:
            factors = factors / kept
        factors = factors.repeat_interleave(self.num_segments)[:, None, None, None]  # (N*T, 1, 1, 1)
        return torch.addcmul(shortcut, branch, factors)

    def extra_repr(self) -> str:
        return f"p={self.p}, num_segments={self.num_segments}"


def _with_channels(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """A convolution like ``conv`` with another number of input channels, initialised like torchvision's ResNet."""
    conv = nn.Conv2d(in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class VideoNetwork(nn.Module):
    """Applies a frame network, dropout and a linear layer to each frame, and averages the logits over frames (TSN).

    Args:
        base_model: the frame network, ``(N*T, C, H, W) -> (N*T, F)``. Its first convolution is ``conv1``, its last
            layer ``fc`` becomes the dropout, and each of its blocks is a ``Block`` that ends with ``conv3``.
        num_classes, num_segments: K and T.
        dropout: dropout probability for each frame's feature, before the linear layer.
        stochastic_depth: drop probability of the last block. It grows linearly from 0 at the first block.
        partial_bn: train only the first BatchNorm2d and freeze all others (TSN).
        frozen_stages: freeze the stem and the first ``frozen_stages`` stages (res2, ...). 0 freezes only the stem, -1
            freezes nothing.
        norm_eval: all batch norms use their running statistics and do not update them; their parameters are not
            trained.
        in_channels: C of a segment: 3 for RGB, 2L for flow, 3L for L differences of frames.

    ``imagenet`` is the file of ``pretrained="imagenet"``, or ``None``. ``not_in_imagenet`` lists the prefixes of
    tensors that this file does not contain. ``aux_weight`` is the factor of the auxiliary loss, if there is one.

    Shapes: ``(N, T, C, H, W)`` float, normalised as the modality needs ``-> (N, K)`` logits. A network with an
    auxiliary head returns ``WithAuxiliary`` in training mode.

    Errors: ``ValueError`` if clips have a wrong shape, number of frames or number of channels.
    """

    imagenet: ImageNetFile | None = RESNET50
    aux_weight = 0.0

    def __init__(
        self,
        base_model: nn.Module,
        num_classes: int,
        num_segments: int,
        dropout: float = 0.5,
        stochastic_depth: float = 0.0,
        partial_bn: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        in_channels: int = 3,
    ):
        super().__init__()
        if num_classes < 1 or num_segments < 1 or in_channels < 1:
            raise ValueError(f"{num_classes=}, {num_segments=} and {in_channels=} must be at least 1")
        self.num_classes, self.num_segments, self.partial_bn = num_classes, num_segments, partial_bn
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.in_channels = in_channels
        self.arch: str | None = None  # the name given to build_model
        self.not_in_imagenet: list[str] = []
        self.base_model = base_model
        if in_channels != 3:
            self.base_model.conv1 = _with_channels(self.base_model.conv1, in_channels)
        # The names base_model (frame network) and new_fc (classifier) are the ones in the released files.
        blocks = [block for _, _, block in self.blocks()]
        self.base_model.fc = nn.Dropout(dropout)
        self.new_fc = nn.Linear(blocks[-1].conv3.out_channels, num_classes)
        nn.init.normal_(self.new_fc.weight, std=0.001)  # as TSN; RSANet has its own initialisation
        nn.init.zeros_(self.new_fc.bias)

        for i, block in enumerate(blocks):
            block.num_segments = num_segments
            p = stochastic_depth * i / (len(blocks) - 1)
            if p > 0:
                block.join = VideoStochasticDepth(p, num_segments)
        self.freeze()

    def blocks(self) -> Iterator[tuple[int, int, Block]]:
        """(stage, index in the stage, block) from input to output; both numbers start at 0."""
        for stage in range(4):
            layer = getattr(self.base_model, f"layer{stage + 1}")
            if isinstance(layer, nn.Sequential):
                for index, block in enumerate(layer):
                    yield stage, index, block

    def stages(self) -> list[tuple[nn.Module, ...]]:
        """The parts that ``frozen_stages`` counts: the modules of the stem, then of each stage."""
        base = self.base_model
        return [(base.conv1, base.bn1), (base.layer1,), (base.layer2,), (base.layer3,), (base.layer4,)]

    def set_backend(self, backend: str) -> None:
        """Choose the path of all operators that have several. ``"reference"`` is plain PyTorch."""
        for module in self.modules():
            if hasattr(module, "backend"):
                module.backend = backend

    def describe_backends(self, device: torch.device) -> list[str]:
        """The paths that operators use on this device, each with its reason.

        The list is empty if no operator has several.
        """
        operators = (module for module in self.modules() if hasattr(module, "describe_backend"))
        return sorted({operator.describe_backend(device) for operator in operators})

    def activation_checkpointing(self, enable: bool = True) -> None:
        """Save only the input of each block for the backward pass.

        It needs less memory but one more forward pass.
        """
        for _, _, block in self.blocks():
            block.recompute = enable

    def frozen(self) -> list[nn.Module]:
        """The modules that are not trained."""
        modules = [module for part in self.stages()[: self.frozen_stages + 1] for module in part]
        if self.partial_bn:
            modules += [m for m in self.base_model.modules() if isinstance(m, nn.BatchNorm2d)][1:]
        if self.norm_eval:
            modules += [m for m in self.base_model.modules() if isinstance(m, _BatchNorm)]
        return modules

    def freeze(self) -> None:
        """Freeze the parameters of ``frozen()`` modules and set their eval mode.

        The constructor and ``insert`` call it. A family that changes the network otherwise calls it when it is done.
        """
        for module in self.frozen():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True):
        """Set training or eval mode; ``frozen()`` modules stay in eval mode."""
        super().train(mode)
        for module in self.frozen():
            module.eval()
        return self

    def check_clips(self, clips: Tensor) -> None:
        """Raise ``ValueError`` unless clips have the network's numbers of frames and channels."""
        if clips.dim() != 5 or clips.shape[1:3] != (self.num_segments, self.in_channels):
            raise ValueError(
                f"the model takes clips (N, {self.num_segments}, {self.in_channels}, H, W), got {tuple(clips.shape)}; "
                "build it with the num_segments and in_channels of the clips"
            )

    def forward(self, clips: Tensor) -> Tensor:
        self.check_clips(clips)
        features = self.base_model(clips.flatten(0, 1))  # (N*T, F), after dropout
        return self.new_fc(features).unflatten(0, (-1, self.num_segments)).mean(1)  # (N, K)
