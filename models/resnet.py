"""torchvision's ResNet on frames, with places for temporal modules, and the video network around it."""

import inspect
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet
from torchvision.ops import StochasticDepth

# Where a module can be inserted into a bottleneck. At "conv2" it replaces the 3x3 convolution.
PLACES = ("before_conv1", "before_conv2", "conv2", "after_bn2", "after_bn3")
STEM = "base_model.conv1.weight"


class Bottleneck(resnet.Bottleneck):
    """torchvision's bottleneck with named places for modules. Shapes: ``(N*T, C, H, W) -> (N*T, C', H', W')``.

    Every inserted module takes and returns ``(N*T, C, H, W)``. ``drop`` is stochastic depth, the last module of the
    residual branch.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.inserted: dict[str, list[str]] = {place: [] for place in PLACES}  # place -> names, in order
        self.drop = nn.Identity()
        self.recompute = False  # save only the input and recompute the rest in the backward pass

    def insert(self, place: str, name: str, module: nn.Module) -> None:
        """Put ``module`` at ``place``, after the modules that are already there, and register it as ``name``.

        ``name`` is the name in released weights. At ``"conv2"`` it must be ``"conv2"``.

        Errors: ``ValueError`` if the place is unknown or the name is taken.
        """
        if place not in PLACES:
            raise ValueError(f"place {place!r} must be one of {', '.join(PLACES)}")
        if place == "conv2":
            if name != "conv2":
                raise ValueError(f"a module at conv2 replaces conv2, so its name must be conv2, not {name!r}")
            self.conv2 = module
            return
        if hasattr(self, name):
            raise ValueError(f"the bottleneck has a {name!r} already; choose another name")
        self.add_module(name, module)
        self.inserted[place].append(name)

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and self.training and torch.is_grad_enabled():
            contexts = (nullcontext(), _keeping_statistics(self))
            return checkpoint(self.compute, x, use_reentrant=False, context_fn=lambda: contexts)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """The forward pass."""
        y = self.relu(self.bn1(self.conv1(self._at("before_conv1", x))))
        y = self.bn2(self.conv2(self._at("before_conv2", y)))
        y = self.relu(self._at("after_bn2", y))
        y = self.drop(self._at("after_bn3", self.bn3(self.conv3(y))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))

    def _at(self, place: str, x: Tensor) -> Tensor:
        for name in self.inserted[place]:
            x = getattr(self, name)(x)
        return x


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


class VideoStochasticDepth(StochasticDepth):
    """Drop the residual branch for whole videos: one random draw for all T frames. ``(N*T, C, H, W) -> the same``."""

    def __init__(self, p: float, num_segments: int):
        super().__init__(p, mode="row")
        self.num_segments = num_segments

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unflatten(0, (-1, self.num_segments))).flatten(0, 1)


class TinyResNet(resnet.ResNet):
    """A small ResNet for 32 to 64 px on a CPU: a quarter of the width, three stages of two blocks, a 3x3 stem."""

    STEM = 16

    def __init__(self):
        super().__init__(Bottleneck, [2, 2, 2, 1])
        self.conv1 = nn.Conv2d(3, self.STEM, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.STEM)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.layer4 = nn.Identity()

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:
            self.inplanes = self.STEM
        return super()._make_layer(block, planes // 4, blocks, stride, dilate)


BACKBONES = {"r50": lambda: resnet.ResNet(Bottleneck, [3, 4, 6, 3]), "tiny": TinyResNet}


def block_name(stage: int, index: int) -> str:
    """The prefix of a bottleneck's tensors in a state dict."""
    return f"base_model.layer{stage + 1}.{index}."


def options_of(operator: Callable, options: dict, besides: Container[str] = ()) -> dict:
    """Move the options that the signature of ``operator`` names from ``options`` to the result.

    Names in ``besides`` stay in ``options``. With this function, an operator's options are listed only in its
    signature.
    """
    names = [name for name in inspect.signature(operator).parameters if name in options and name not in besides]
    return {name: options.pop(name) for name in names}


def _with_channels(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """A convolution like ``conv`` with another number of input channels, initialised like torchvision's ResNet."""
    conv = nn.Conv2d(in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class VideoResNet(nn.Module):
    """Applies a frame network, dropout and a linear layer to each frame, and averages the logits over frames (TSN).

    Args:
        backbone: ``"r50"`` or ``"tiny"``.
        num_classes, num_segments: K and T.
        dropout: dropout probability for each frame's feature, before the linear layer.
        stochastic_depth: drop probability of the last bottleneck. It grows linearly from 0 at the first bottleneck.
        partial_bn: train only the first BatchNorm2d and freeze all others (TSN).
        frozen_stages: freeze the stem and the first ``frozen_stages`` stages (res2, ...). 0 freezes only the stem, -1
            freezes nothing.
        norm_eval: all batch norms use their running statistics and do not update them; their parameters are not
            trained.
        in_channels: C of a segment: 3 for RGB, 2L for flow, 3L for L differences of frames.

    ``not_in_imagenet`` lists the prefixes of tensors that an ImageNet file does not contain.

    Shapes: ``(N, T, C, H, W)`` float, normalised as the modality needs ``-> (N, K)`` logits.

    Errors: ``ValueError`` if clips have a wrong shape, number of frames or number of channels.
    """

    def __init__(
        self,
        backbone: str,
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
        self.base_model = BACKBONES[backbone]()
        if in_channels != 3:
            self.base_model.conv1 = _with_channels(self.base_model.conv1, in_channels)
        # The names base_model (frame network) and new_fc (classifier) are the ones in the released files.
        features = list(self.blocks())[-1][2].conv3.out_channels
        self.base_model.fc = nn.Dropout(dropout)
        self.new_fc = nn.Linear(features, num_classes)
        nn.init.normal_(self.new_fc.weight, std=0.001)  # as TSN; RSANet has its own initialisation
        nn.init.zeros_(self.new_fc.bias)

        blocks = [block for _, _, block in self.blocks()]
        for i, block in enumerate(blocks):
            p = stochastic_depth * i / (len(blocks) - 1)
            if p > 0:
                block.drop = VideoStochasticDepth(p, num_segments)
        self.freeze()

    def blocks(self) -> Iterator[tuple[int, int, Bottleneck]]:
        """(stage, index in the stage, bottleneck) from input to output; both numbers start at 0."""
        for stage in range(4):
            layer = getattr(self.base_model, f"layer{stage + 1}")
            if isinstance(layer, nn.Sequential):
                for index, block in enumerate(layer):
                    yield stage, index, block

    def insert(
        self,
        place: str,
        name: str,
        make: Callable[[Bottleneck], nn.Module],
        blocks: Container[tuple[int, int]] | None = None,
    ) -> None:
        """Put ``make(bottleneck)`` at ``place`` of bottlenecks as ``name``, and note it in ``not_in_imagenet``.

        Args:
            place: one of ``PLACES``.
            name: the name of the module in released weights. If ``place`` is ``"conv2"``, it must be ``"conv2"``.
            make: builds the module for a bottleneck. It can read the number of channels from the bottleneck's
                convolutions.
            blocks: (stage, index) of the chosen bottlenecks, both from 0 as in ``blocks()``; ``None`` chooses all.

        Errors: the errors of ``make``, and ``ValueError`` if the place is unknown or the name is taken.
        """
        for stage, index, block in self.blocks():
            if blocks is None or (stage, index) in blocks:
                block.insert(place, name, make(block))
                self.not_in_imagenet.append(f"{block_name(stage, index)}{name}.")
        self.freeze()

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
        """Save only the input of each bottleneck for the backward pass.

        It needs less memory but one more forward pass.
        """
        for _, _, block in self.blocks():
            block.recompute = enable

    def frozen(self) -> list[nn.Module]:
        """The modules that are not trained."""
        base = self.base_model
        stem_and_stages = [(base.conv1, base.bn1), (base.layer1,), (base.layer2,), (base.layer3,), (base.layer4,)]
        modules = [module for part in stem_and_stages[: self.frozen_stages + 1] for module in part]
        if self.partial_bn:
            modules += [m for m in base.modules() if isinstance(m, nn.BatchNorm2d)][1:]
        if self.norm_eval:
            modules += [m for m in base.modules() if isinstance(m, _BatchNorm)]
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

    def forward(self, clips: Tensor) -> Tensor:
        if clips.dim() != 5 or clips.shape[1:3] != (self.num_segments, self.in_channels):
            raise ValueError(
                f"the model takes clips (N, {self.num_segments}, {self.in_channels}, H, W), got {tuple(clips.shape)}; "
                "build it with the num_segments and in_channels of the clips"
            )
        features = self.base_model(clips.flatten(0, 1))  # (N*T, F), after dropout
        return self.new_fc(features).unflatten(0, (-1, self.num_segments)).mean(1)  # (N, K)
