"""The operators of the two papers and the shift they are compared with. Torch only: copy any file alone.

RSA's faster paths are the files beside it; they are added here, so that ``rsa.py`` alone still is the whole operator.
"""

from . import rsa, rsa_fused, rsa_triton
from .rsa import RSA, rsa_backend_reason
from .sda import SDA
from .temporal_shift import TemporalShift

for name, file in (("fused", rsa_fused), ("triton", rsa_triton)):
    rsa.BACKENDS[name] = (file.relational_self_attention, file.why_not)

__all__ = ["RSA", "SDA", "TemporalShift", "rsa_backend_reason"]
