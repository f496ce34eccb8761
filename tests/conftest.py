"""How the tests run: two processes share the cores, and property-based tests try 100 examples, the same in every run.

``pytest --hypothesis-profile thorough`` tries 2,000 new examples. A test that sets its own number keeps it.
"""

import os

from hypothesis import settings

# Before torch is imported, here and in what the tests start: pytest's processes (-n 2) would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile("ci")  # pytest loads the profile of its flag later


def pytest_collection_modifyitems(items: list) -> None:
    """README's commands take the longest: they begin first, or one process would end with them alone."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
