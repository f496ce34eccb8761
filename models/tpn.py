"""TSM with a temporal pyramid network (TPN, CVPR 2020): one feature vector and one row of logits per clip."""

import re

from torch import Tensor, nn

from ops import TemporalPyramid, TemporalShift

from .layout import Layout, State
from .resnet import VideoResNet, options_of
from .video_network import WithAuxiliary


class PyramidNetwork(VideoResNet):
    """A ResNet with TSM's shift and the neck of TPN on its last two stages.

    As released, the shift of the first block of a stage also changes the input of its shortcut, and an auxiliary head
    gives a second loss in training. The neck replaces the mean over frames.

    Args:
        size, num_classes, num_segments: as for ``VideoResNet``.
        dropout: dropout probability of the clip's feature, also in the auxiliary head.
        flow: order of the neck's steps, see ``ops.TemporalPyramid``.
        shift_shortcut: ``False`` leaves the shortcuts unshifted, as in TSM and in MMAction2's TPN.
        fold_div: option of ``ops.TemporalShift``.
        options: the other arguments of ``VideoNetwork``.
    """

    aux_weight = 0.5

    def __init__(
        self,
        size: str,
        num_classes: int,
        num_segments: int,
        dropout: float = 0.5,
        flow: str = "cascade",
        shift_shortcut: bool = True,
        **options,
    ):
        shift_options = options_of(TemporalShift, options)
        super().__init__(size, num_classes, num_segments, dropout=dropout, **options)
        with_shortcut = [(stage, index) for stage, index, block in self.blocks() if block.downsample is not None]
        without = [(stage, index) for stage, index, block in self.blocks() if block.downsample is None]
        first = "before_block" if shift_shortcut else "before_conv1"
        for place, blocks in ((first, with_shortcut), ("before_conv1", without)):
            self.insert(place, "shift", lambda block: TemporalShift(num_segments, **shift_options), blocks)
        channels = [stage[-1].conv3.out_channels for stage in self._residual_stages()[-2:]]
        self.neck = TemporalPyramid(tuple(channels), num_segments, num_classes, dropout, flow)
        self.not_in_imagenet.append("neck.")
        nn.init.normal_(self.new_fc.weight, std=0.01)
        self.freeze()

    def frozen(self) -> list[nn.Module]:
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]  # also the neck's
        return super().frozen() + (norms if self.norm_eval else [])

    def forward(self, clips: Tensor) -> Tensor | WithAuxiliary:
        self.check_clips(clips)
        base = self.base_model
        x = base.maxpool(base.relu(base.bn1(base.conv1(clips.flatten(0, 1)))))
        for stage in self._residual_stages():
            early, x = x, stage(x)
        features = self.neck(early, x).mean((2, 3))  # (N, F)
        logits = self.new_fc(base.fc(features))
        return WithAuxiliary(logits, self.neck.aux_head(early)) if self.training else logits

    def _residual_stages(self) -> list[nn.Sequential]:
        layers = [getattr(self.base_model, f"layer{stage}") for stage in range(1, 5)]
        return [layer for layer in layers if isinstance(layer, nn.Sequential)]


def tsm_tpn(size: str, num_classes: int, num_segments: int, **options) -> PyramidNetwork:
    """TSM with TPN.

    The options are ``flow`` and ``shift_shortcut`` (see ``PyramidNetwork``) and the options of ``TemporalShift`` and
    ``VideoNetwork``.
    """
    return PyramidNetwork(size, num_classes, num_segments, **options)


# Names in the released files, then those in MMAction2's (its two level fusions are in the other order), and ours.
RENAMES = (
    (r"^backbone\.", "base_model."),
    (r"^cls_head\.fc_cls\.", "new_fc."),
    (r"^necks\.", "neck."),
    (r"^(base_model\..*)conv(\d)\.bn\.", r"\1bn\2."),
    (r"^(base_model\..*conv\d\.)conv\.(net\.)?", r"\1"),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
    (r"^neck\.level_fusion_1\.", "neck.level_fusion_op2."),
    (r"^neck\.level_fusion_2\.", "neck.level_fusion_op."),
    (r"\.downsamples\.(\d)\.conv\.conv\.", r".ops.\1.conv."),
    (r"\.downsamples\.(\d)\.conv\.bn\.", r".ops.\1.norm."),
    (r"\.downsample_ops\.", ".downsampling_ops."),
    (r"\.pyramid_fusion\.", ".pyramid_fusion_op."),
    (r"\.(fusion_conv|pyramid_fusion_op)\.conv\.", r".\1.0."),
    (r"\.(fusion_conv|pyramid_fusion_op)\.bn\.", r".\1.1."),
    (r"\.aux_head\.conv\.", ".aux_head.convs."),
    (r"_ops\.(\d)\.conv\.conv\.", r"_ops.\1.conv."),
)


def _released(state: State) -> bool:
    return any(key.startswith("backbone.") for key in state) and any(re.match(r"necks?\.", key) for key in state)


def _our_name(key: str) -> str:
    for pattern, name in RENAMES:
        key = re.sub(pattern, name, key)
    return key


TPN_LAYOUT = Layout(
    "TPN",
    mark=_released,
    rename=_our_name,
    model=lambda state: "tsm_tpn_r50" if _released(state) else None,
    module=TemporalShift,
)
