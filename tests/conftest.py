"""Settings of the tests. Two processes share the tests. Property-based tests try the same 100 examples in every run.

``pytest --hypothesis-profile thorough`` tries 2,000 new examples. A test that sets its own number keeps it.
"""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Set before torch is imported here and in the programs that tests start. With more threads, pytest's two processes
# would compete for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Training notes there which datasets it has checked. Tests must not fill the user's own folder. Matplotlib keeps its
# fonts in the user's, because it needs seconds to find them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("MPLCONFIGDIR", os.path.join(cache, "matplotlib"))
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tests-cache-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# A shell lets background commands ignore Ctrl-C, and programs inherit that. The tests of Ctrl-C must not depend on it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile("ci")  # --hypothesis-profile takes effect later


@pytest.fixture
def official(tmp_path):
    """A function that writes a dataset's official files and returns their folder."""

    from official_files import OFFICIAL  # PyAV, which only these tests need

    def write(name: str) -> Path:
        folder = tmp_path / "official"
        folder.mkdir()
        OFFICIAL[name](folder)
        return folder

    return write


def pytest_collection_modifyitems(items: list) -> None:
    """Start README's commands first, because they take longest. No process then has to wait for them at the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
