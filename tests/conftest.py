"""Settings of the tests. Two processes share the tests. Property-based tests try the same 100 examples in every run.

``pytest --hypothesis-profile thorough`` tries 2,000 new examples. A test that sets its own number keeps it.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Set before torch is imported here and in the programs that tests start. With more threads, pytest's two processes
# would compete for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
