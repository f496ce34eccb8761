"""RubiksNet (ECCV 2020): a network of its own. After the stem, only learnt shifts mix positions and frames."""

import re
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ops import RubiksShift3D

from .layout import Layout, State
from .video_network import Block, VideoNetwork

# Width of the stem, blocks of layer1 to layer4, and whether the blocks have squeeze-and-excitation (released tiers).
TIERS = {
    "tiny": (54, (3, 4, 6, 3), False),
    "small": (72, (3, 4, 6, 3), True),
    "medium": (72, (3, 4, 23, 3), False),
    "large": (72, (3, 8, 36, 3), False),
}


class SqueezeExcitation(nn.Module):
    """Weights the channels of each frame by its mean: (N*T, C, H, W) -> the same. No biases."""

    def __init__(self, channels: int, reduction: int = 12):
        super().__init__()
        reduced = channels // reduction
        self.fc = nn.Sequential(
            nn.Linear(channels, reduced, bias=False), nn.ReLU(), nn.Linear(reduced, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class RubiksBlock(Block):
    """BN, ReLU, 1x1 convolution, BN, ReLU, shift, 1x1 convolution; then the shortcut is added.

    Shapes: ``(N*T, C, H, W) -> (N*T, C', H', W')``. The shift has the stride.
    """

    num_segments: int

    def __init__(self, in_channels: int, channels: int, num_segments: int, stride: int = 1, excitation: bool = False):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.as3 = nn.Sequential(OrderedDict(rubiks3d=RubiksShift3D(channels, num_segments, stride)))
        self.se = SqueezeExcitation(channels) if excitation else nn.Identity()
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)
        strided = stride != 1 or in_channels != channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if strided else None

    def compute(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        b = F.relu(self.bn2(self.conv2(a)))
        y = self.conv3(self.se(self.as3(b)))
        return self.join(y, x if self.shortcut is None else self.shortcut(a))


class RubiksBackbone(nn.Module):
    """The frame network, (N*T, 3, H, W) -> (N*T, F). Each of layer1 to layer4 halves the map, as does the stem."""

    def __init__(self, tier: str, num_segments: int):
        super().__init__()
        width, blocks, excitation = TIERS[tier]
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        channels = width
        for layer, count in enumerate((1, *blocks)):
            before, channels = channels, width * 2 ** max(layer - 1, 0)
            stride = 1 if layer == 0 else 2
            first = RubiksBlock(before, channels, num_segments, stride, excitation)
            rest = (RubiksBlock(channels, channels, num_segments, 1, excitation) for _ in range(count - 1))
            self.add_module(f"layer{layer}", nn.Sequential(first, *rest))
        self.bn_last = nn.BatchNorm2d(channels)
        self.fc = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for layer in range(5):
            x = getattr(self, f"layer{layer}")(x)
        return self.fc(F.relu(self.bn_last(x)).mean((2, 3)))


class RubiksNet(VideoNetwork):
    """RubiksNet. The logits of the frames are averaged.

    Args:
        tier: ``"tiny"``, ``"small"``, ``"medium"`` or ``"large"``, the released networks of 1.9 to 8.5 million
            parameters.
        num_classes, num_segments: K and T.
        dropout: dropout probability for each frame's feature. The released networks have none.
        options: the other arguments of ``VideoNetwork``.
    """

    imagenet = None  # the released networks start from Kinetics weights of their own

    def __init__(self, tier: str, num_classes: int, num_segments: int, dropout: float = 0.0, **options):
        super().__init__(RubiksBackbone(tier, num_segments), num_classes, num_segments, dropout=dropout, **options)
        self.new_fc.reset_parameters()  # torch's default, as released

    def blocks(self):
        for stage in range(5):
            for index, block in enumerate(getattr(self.base_model, f"layer{stage}")):
                yield stage, index, block

    def stages(self) -> list[tuple[nn.Module, ...]]:
        """The stem with layer0, then layer1, layer2, layer3, and layer4 with the last batch norm."""
        base = self.base_model
        return [(base.conv1, base.layer0), (base.layer1,), (base.layer2,), (base.layer3,), (base.layer4, base.bn_last)]


def rubiksnet(size: str, num_classes: int, num_segments: int, **options) -> RubiksNet:
    """RubiksNet. ``size`` is the tier. The options are the arguments of ``RubiksNet``."""
    return RubiksNet(size, num_classes, num_segments, **options)


def _released(state: State) -> bool:
    return "backbone.conv1.weight" in state and any(key.endswith(".rubiks3d.shift") for key in state)


def _model(state: State) -> str | None:
    """The model of a released state dict. Its width, numbers of blocks and squeeze-and-excitation tell the tier."""
    if not _released(state):
        return None
    width = state["backbone.conv1.weight"].shape[:1]
    layers = [rf"backbone\.layer{number}\.\d+\.conv3\." for number in range(1, 5)]
    blocks = tuple(sum(bool(re.match(layer, key)) for key in state) for layer in layers)
    excitation = any(".se.fc." in key for key in state)
    found = [tier for tier, released in TIERS.items() if ((released[0],), *released[1:]) == (width, blocks, excitation)]
    return f"rubiksnet_{found[0]}" if found else None


# A released file is a dictionary that holds the tier, the numbers of classes and frames, and the state dict "model".
RUBIKS_LAYOUT = Layout(
    "RubiksNet",
    mark=_released,
    rename=lambda key: re.sub(r"^backbone\.", "base_model.", key),
    model=_model,
)
