"""torchvision's ResNet on frames, with slots for temporal operators, and the video network around it."""

from collections.abc import Iterator

from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import StochasticDepth


class Bottleneck(resnet.Bottleneck):
    """torchvision's bottleneck with three empty slots: ``shift`` before conv1, ``sda`` after bn2, ``drop`` after bn3.

    A fourth operator, RSA, takes the place of ``conv2`` itself. Shapes: ``(N*T, C, H, W) -> (N*T, C', H', W')``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shift, self.sda, self.drop = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(self.shift(x))))
        y = self.relu(self.sda(self.bn2(self.conv2(y))))
        y = self.drop(self.bn3(self.conv3(y)))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class VideoStochasticDepth(StochasticDepth):
    """Drop a residual branch for a whole video: one draw for its T frames. ``(N*T, C, H, W) -> (N*T, C, H, W)``."""

    def __init__(self, p: float, num_segments: int):
        super().__init__(p, mode="row")
        self.num_segments = num_segments

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unflatten(0, (-1, self.num_segments))).flatten(0, 1)


class TinyResNet(resnet.ResNet):
    """A quarter of the width, three stages of two blocks, a 3x3 stem of 16 channels: for 32 to 64 px on a CPU."""

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


class VideoResNet(nn.Module):
    """A frame network, dropout and a linear layer for each frame, and the mean of the logits over frames (TSN).

    Args:
        backbone: ``"r50"`` or ``"tiny"``.
        num_classes, num_segments: K and T.
        dropout: probability, on each frame's feature before the linear layer.
        stochastic_depth: drop probability of the last bottleneck's branch; it grows linearly from 0 at the first.
        partial_bn: train only the first BatchNorm2d and freeze all others (TSN).

    Shapes: ``(N, T, 3, H, W)`` float, ImageNet-normalised ``-> (N, K)`` logits.
    Errors: ``ValueError`` for clips of another shape or frame count.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        num_segments: int,
        dropout: float = 0.5,
        stochastic_depth: float = 0.0,
        partial_bn: bool = False,
    ):
        super().__init__()
        if num_classes < 1 or num_segments < 1:
            raise ValueError(f"num_classes={num_classes} and num_segments={num_segments} must be at least 1")
        self.num_classes, self.num_segments, self.partial_bn = num_classes, num_segments, partial_bn
        self.arch: str | None = None  # the name it was built by
        self.base_model = BACKBONES[backbone]()
        # The released files call the frame network base_model and the classifier new_fc; so do ours.
        features = list(self.blocks())[-1][2].conv3.out_channels
        self.base_model.fc = nn.Dropout(dropout)
        self.new_fc = nn.Linear(features, num_classes)
        nn.init.normal_(self.new_fc.weight, std=0.001)  # the TSN family's; RSANet has its own
        nn.init.zeros_(self.new_fc.bias)

        blocks = [block for _, _, block in self.blocks()]
        for i, block in enumerate(blocks):
            p = stochastic_depth * i / (len(blocks) - 1)
            if p > 0:
                block.drop = VideoStochasticDepth(p, num_segments)

    def blocks(self) -> Iterator[tuple[int, int, Bottleneck]]:
        """(stage, index in the stage, bottleneck), both from 0, from the input to the output."""
        for stage in range(4):
            layer = getattr(self.base_model, f"layer{stage + 1}")
            if isinstance(layer, nn.Sequential):
                for index, block in enumerate(layer):
                    yield stage, index, block

    def train(self, mode: bool = True):
        super().train(mode)
        if self.partial_bn:
            norms = [m for m in self.base_model.modules() if isinstance(m, nn.BatchNorm2d)]
            for norm in norms[1:]:
                norm.eval()
                norm.requires_grad_(False)
        return self

    def forward(self, clips: Tensor) -> Tensor:
        if clips.dim() != 5 or clips.shape[1:3] != (self.num_segments, 3):
            raise ValueError(
                f"the model takes clips (N, {self.num_segments}, 3, H, W), got {tuple(clips.shape)}; "
                "build it with the num_segments of the clips"
            )
        features = self.base_model(clips.flatten(0, 1))  # (N*T, F), after dropout
        return self.new_fc(features).unflatten(0, (-1, self.num_segments)).mean(1)  # (N, K)
