"""How PyTorch's threads wait for each other on a CPU. A program imports this file before torch, which reads it once.

GNU's OpenMP, which PyTorch uses on Linux, lets a thread spin for some milliseconds before it sleeps. If other processes
need the cores, all threads of an operation spin in vain until the last one gets a core. Beside three busy processes on
two cores, a training step took 6 to 14 times as long as on free cores; with a shorter spin it took 3 to 6 times as
long. On free cores, the shorter spin costs at most 6 % (``benchmarks/RESULTS.md``). The results of operations do not
depend on it, but they may depend on the number of threads, so this number stays.
"""

import os

SPINS = 10_000  # instead of 300,000

if "OMP_WAIT_POLICY" not in os.environ:  # the user's own choice, also of GOMP_SPINCOUNT, wins
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
