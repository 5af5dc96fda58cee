"""How many processes the tests run in, and in which environment: one that no variable of the shell steers."""

from __future__ import annotations

import os

STEERING = {
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONUNBUFFERED"),
    *("FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
}
STEERING_PREFIXES = ("SUPERVISE_", "RUNPOD_", "BUCKET_", "OPENAI_")
OURS = {"RUNPOD_SDK"}
"""What a person tells these tests."""

for name in set(os.environ) - OURS:
    if name.upper() in STEERING or name.startswith(STEERING_PREFIXES):
        del os.environ[name]


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many of these tests wait for a process most of the time."""
    return len(os.sched_getaffinity(0)) + 1
