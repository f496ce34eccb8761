"""torchvision's ResNet on frames, with places for temporal modules."""

import inspect
from collections.abc import Callable, Container

from torch import Tensor, nn
from torchvision.models import resnet

from .video_network import Block, VideoNetwork

# The places of a bottleneck, in the order of its forward pass. A module at conv1 or conv2 replaces the convolution. The
# module at before_block changes the input of the shortcut too.
PLACES = (
    "before_block",
    "before_conv1",
    "conv1",
    "before_conv2",
    "conv2",
    "after_bn2",
    "after_bn3",
    "after_block",
)
REPLACED = ("conv1", "conv2")


class Bottleneck(Block, resnet.Bottleneck):
    """torchvision's bottleneck with named places for modules. Shapes: ``(N*T, C, H, W) -> (N*T, C', H', W')``.

    Every inserted module takes and returns ``(N*T, C, H, W)``. A subclass can override ``middle`` (everything between
    the first ReLU and conv3) or ``compute``. ``num_segments`` is T.
    """

    num_segments: int

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.inserted: dict[str, list[str]] = {place: [] for place in PLACES}  # place -> names, in order

    def insert(self, place: str, name: str, module: nn.Module) -> None:
        """Put ``module`` at ``place``, after the modules that are already there, and register it as ``name``.

        ``name`` is the name in released weights. At ``"conv1"`` and ``"conv2"`` it must be the place's name.

        Errors: ``ValueError`` if the place is unknown or the name is taken.
        """
        if place not in PLACES:
            raise ValueError(f"place {place!r} must be one of {', '.join(PLACES)}")
        if place in REPLACED:
            if name != place:
                raise ValueError(f"a module at {place} replaces {place}, so its name must be {place}, not {name!r}")
            setattr(self, place, module)
            return
        if hasattr(self, name):
            raise ValueError(f"the bottleneck has a {name!r} already; choose another name")
        self.add_module(name, module)
        self.inserted[place].append(name)

    def compute(self, x: Tensor) -> Tensor:
        x = self.at("before_block", x)
        y = self.relu(self.bn1(self.conv1(self.at("before_conv1", x))))
        y = self.bn3(self.conv3(self.middle(y)))
        y = self.join(self.at("after_bn3", y), x if self.downsample is None else self.downsample(x))
        return self.at("after_block", self.relu(y))

    def middle(self, y: Tensor) -> Tensor:
        """From the output of the first ReLU to the input of conv3."""
        return self.relu(self.at("after_bn2", self.bn2(self.conv2(self.at("before_conv2", y)))))

    def at(self, place: str, x: Tensor) -> Tensor:
        """Apply the modules at ``place``, in order."""
        for name in self.inserted[place]:
            x = getattr(self, name)(x)
        return x


class TinyResNet(resnet.ResNet):
    """A small ResNet for 32 to 64 px on a CPU: a quarter of the width, three stages of two blocks, a 3x3 stem."""

    STEM = 16

    def __init__(self, block: type[Bottleneck]):
        super().__init__(block, [2, 2, 2, 1])
        self.conv1 = nn.Conv2d(3, self.STEM, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.STEM)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.layer4 = nn.Identity()

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:
            self.inplanes = self.STEM
        return super()._make_layer(block, planes // 4, blocks, stride, dilate)


BACKBONES = {"r50": lambda block: resnet.ResNet(block, [3, 4, 6, 3]), "tiny": TinyResNet}


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


class VideoResNet(VideoNetwork):
    """A ``VideoNetwork`` whose frame network is torchvision's ResNet.

    Args:
        size: ``"r50"`` or ``"tiny"``.
        block: the class of its bottlenecks.
        options: the other arguments of ``VideoNetwork``.
    """

    def __init__(self, size: str, num_classes: int, num_segments: int, block: type[Bottleneck] = Bottleneck, **options):
        super().__init__(BACKBONES[size](block), num_classes, num_segments, **options)

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
            name: the name of the module in released weights. A module at ``"conv1"`` or ``"conv2"`` has this name.
            make: builds the module for a bottleneck. It can read the number of channels from the bottleneck's
                convolutions.
            blocks: (stage, index) of the chosen bottlenecks, both from 0 as in ``blocks()``; ``None`` chooses all.

        A module that replaces a convolution can start from the convolution's ImageNet weight. Its method
        ``from_imagenet(weight)`` then returns a dictionary, name inside the module -> tensor, and its attribute
        ``not_in_imagenet`` lists the other tensors by prefixes inside the module.

        Errors: the errors of ``make``, and ``ValueError`` if the place is unknown or the name is taken.
        """
        for stage, index, block in self.blocks():
            if blocks is None or (stage, index) in blocks:
                module = make(block)
                block.insert(place, name, module)
                prefix = f"{block_name(stage, index)}{name}."
                self.not_in_imagenet += [f"{prefix}{part}" for part in getattr(module, "not_in_imagenet", ("",))]
        self.freeze()
