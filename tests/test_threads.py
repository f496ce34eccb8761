"""main.py and test_models.py choose how PyTorch's threads wait before torch is imported."""

import os
import subprocess
import sys

import pytest
from toy_run import ROOT

from engine.threads import SPINS

# Runs a program until it imports torch, and prints what torch would see.
UNTIL_TORCH = """\
import os, runpy, sys

class Stop:
    def find_spec(name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
            os._exit(sys.stdout.flush() or 0)

sys.meta_path.insert(0, Stop)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("program", ["main.py", "test_models.py"])
@pytest.mark.parametrize(
    "chosen, seen",
    [
        ({}, f"{SPINS} None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"),
    ],
)
def test_threads_spin_shortly_unless_the_user_chooses(program, chosen, seen):
    others = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    words = [sys.executable, "-c", UNTIL_TORCH, program]
    result = subprocess.run(words, cwd=ROOT, env=others | chosen, text=True, capture_output=True, timeout=60)
    assert (result.returncode, result.stdout.strip()) == (0, seen), result.stderr
