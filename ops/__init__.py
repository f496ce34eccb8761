"""The operators of the papers and of the systems they are compared with. They need only torch, so files can be copied.

The faster paths of RSA are in separate files and are added here. Therefore ``rsa.py`` is a complete operator without
them.
"""

from . import rsa_fused, rsa_triton
from .c3d import ClipConv3d
from .gst import GST
from .rsa import RSA, add_backend, rsa_backend_reason
from .rubiksnet import RubiksShift3D
from .sda import SDA
from .smallbig import BigPool, GlobalView
from .stm import ChannelwiseMotion, ChannelwiseTemporalConv
from .tam import TAM
from .tea import MotionExcitation, TemporalShiftConv, multiple_temporal_aggregation
from .teinet import TEI
from .temporal_shift import ShiftedConv2d, TemporalShift
from .tin import TIN
from .tpn import TemporalPyramid
from .v4d import R4D

add_backend("fused", rsa_fused.relational_self_attention, rsa_fused.why_not)
add_backend("triton", rsa_triton.relational_self_attention, rsa_triton.why_not)

__all__ = [
    "GST",
    "R4D",
    "RSA",
    "SDA",
    "TAM",
    "TEI",
    "TIN",
    "BigPool",
    "ChannelwiseMotion",
    "ChannelwiseTemporalConv",
    "ClipConv3d",
    "GlobalView",
    "MotionExcitation",
    "RubiksShift3D",
    "TemporalPyramid",
    "ShiftedConv2d",
    "TemporalShift",
    "TemporalShiftConv",
    "multiple_temporal_aggregation",
    "rsa_backend_reason",
]
