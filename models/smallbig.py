"""SmallBigNet (CVPR 2020): every convolution of res3 to res5 sees its input and a maximum over its neighbours."""

from torch import Tensor, nn

from ops import BigPool, GlobalView

from .layout import Layout
from .resnet import Bottleneck, VideoResNet, block_name

THIRD_POOLS = ("all_frames", "3x3x3")


class SmallBigBottleneck(Bottleneck):
    r"""A bottleneck whose convolutions have a small and a big view, with one weight and two batch norms.

    .. math:: Y_i = \mathrm{BN}_i(W_i Y_{i-1}) + B_i(W_i\, \mathrm{maxpool}(Y_{i-1}))

    A ReLU follows Y_1, Y_2 and the sum with the shortcut. Until ``widen`` is called, it is a plain bottleneck.
    """

    def widen(self, third_pool: str, extra: bool) -> None:
        """Add the big views. ``num_segments`` must be set."""
        self.pool = BigPool(self.num_segments)
        self.third_pool = BigPool(self.num_segments, all_frames=third_pool == "all_frames")
        self.big1, self.big2, self.big3 = (nn.BatchNorm2d(bn.num_features) for bn in (self.bn1, self.bn2, self.bn3))
        for bn in (self.big1, self.big2, self.big3):
            nn.init.zeros_(bn.weight)  # so the network starts as a ResNet on frames
        self.extra = GlobalView(self.conv1.in_channels, self.num_segments) if extra else None

    def compute(self, x: Tensor) -> Tensor:
        if not hasattr(self, "pool"):
            return super().compute(x)
        if self.extra is not None:
            x = self.extra(x)
        y = self.relu(self.bn1(self.conv1(x)) + self.big1(self.conv1(self.pool(x))))
        y = self.relu(self.bn2(self.conv2(y)) + self.big2(self.conv2(self.pool(y))))
        small, big = self.bn3(self.conv3(y)), self.big3(self.conv3(self.third_pool(y)))
        # The big view has one frame for each clip, or all of them.
        clips = small.shape[0] // self.num_segments
        small, big = (view.unflatten(0, (clips, -1)) for view in (small, big))  # (N, T or 1, C, H, W)
        y = self.join((small + big).flatten(0, 1), x if self.downsample is None else self.downsample(x))
        return self.relu(y)


def smallbig(
    size: str,
    num_classes: int,
    num_segments: int,
    third_pool: str = "all_frames",
    extra: bool = False,
    dropout: float = 0.0,
    **options,
) -> VideoResNet:
    """SmallBigNet. The other options are the arguments of ``VideoResNet``.

    Args:
        third_pool: the pool of a block's third convolution. ``"all_frames"``, the released one, takes the maximum over
            all frames of the clip, so the big view has one frame. ``"3x3x3"`` keeps all frames. The multiply-adds
            in the papers' tables (57 G for 8 frames) are those of this one, and those of the released one are 52 G.
        extra: add the released global view to the input of each block (``smallbig50_extra``).
        dropout: the released network has none.

    Errors: ``ValueError`` if ``third_pool`` is unknown.
    """
    if third_pool not in THIRD_POOLS:
        raise ValueError(f"third_pool={third_pool!r} must be one of {THIRD_POOLS}")
    model = VideoResNet(size, num_classes, num_segments, block=SmallBigBottleneck, dropout=dropout, **options)
    for stage, index, block in model.blocks():
        if stage > 0:  # res2 has plain bottlenecks
            block.widen(third_pool, extra)
            names = ("big1", "big2", "big3", "extra")
            model.not_in_imagenet += [f"{block_name(stage, index)}{name}." for name in names]
    model.new_fc.reset_parameters()  # as released, PyTorch's default
    model.freeze()
    return model


# The released names of a block's parts -> ours. The released "1" counts the pool, which has no tensors.
PARTS = {f".big{i}.1.": f".big{i}." for i in (1, 2, 3)}
PARTS |= {".big4_1.": ".extra.reduce.", ".big4_2.0.": ".extra.expand.", ".big4_2.1.": ".extra.bn."}


def _our_name(key: str) -> str:
    for released, ours in PARTS.items():
        key = key.replace(released, ours)
    return key if key.startswith(("base_model.", "new_fc.")) else f"base_model.{key}"


SMALLBIG_LAYOUT = Layout(
    "SmallBig",
    mark=lambda state: any(".big1.1." in key for key in state),
    rename=_our_name,
    model=lambda state: "smallbig_r50" if any(key.endswith("layer4.0.big1.1.weight") for key in state) else None,
)
