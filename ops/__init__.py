"""The operators of the two papers and the temporal shift. They need only torch, so files can be copied.

The faster paths of RSA are in separate files and are added here. Therefore ``rsa.py`` is a complete operator without
them.
"""

from . import rsa_fused, rsa_triton
from .rsa import RSA, add_backend, rsa_backend_reason
from .sda import SDA
from .smallbig import BigPool, GlobalView
from .stm import ChannelwiseMotion, ChannelwiseTemporalConv
from .tea import MotionExcitation, TemporalShiftConv, multiple_temporal_aggregation
from .temporal_shift import TemporalShift

add_backend("fused", rsa_fused.relational_self_attention, rsa_fused.why_not)
add_backend("triton", rsa_triton.relational_self_attention, rsa_triton.why_not)

__all__ = [
    "RSA",
    "SDA",
    "BigPool",
    "ChannelwiseMotion",
    "ChannelwiseTemporalConv",
    "GlobalView",
    "MotionExcitation",
    "TemporalShift",
    "TemporalShiftConv",
    "multiple_temporal_aggregation",
    "rsa_backend_reason",
]
