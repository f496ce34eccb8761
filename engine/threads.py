"""How PyTorch's threads wait for each other on a CPU. A program imports this file before torch, which reads it once.

GNU's OpenMP, which PyTorch uses on Linux, lets a thread spin for some milliseconds before it sleeps. If another process
has the core of the last thread, all other threads spin in vain at the end of each operation. A training step then took
up to 14 times as long. With a shorter spin it took half of that or less, and on free cores at most 6 % more
(``benchmarks/RESULTS.md``). The results of operations do not depend on it, unlike on the number of threads.
"""

import os

SPINS = 10_000  # instead of 300,000

if "OMP_WAIT_POLICY" not in os.environ:  # the user's own choice, also of GOMP_SPINCOUNT, wins
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
