"""How many processes the tests run in."""

from __future__ import annotations

import os


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many of these tests wait for a process most of the time."""
    return len(os.sched_getaffinity(0)) + 1
