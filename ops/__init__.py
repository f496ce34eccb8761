"""The operators of the two papers and the shift they are compared with. Torch only: copy any file alone."""

from .rsa import RSA
from .sda import SDA
from .temporal_shift import TemporalShift

__all__ = ["RSA", "SDA", "TemporalShift"]
