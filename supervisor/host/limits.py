"""A process's OOM priority and CPU affinity.

Used in the template process and in workers, before any code of the handler.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection
from pathlib import Path

WORSE = 250
"""Added to ``oom_score_adj`` from the supervisor to the template, and from there to each worker: the kernel kills a worker before
the template, and that before the supervisor, unless one uses a quarter of the machine's memory more than the other (proc(5))."""

_WORST = 1000


def raise_oom_score(above: int) -> None:
    """Make the OOM killer choose this process and its children before the process ``above``."""
    with contextlib.suppress(OSError, ValueError):  # /proc may be read-only: nothing depends on it
        score = int(Path(f"/proc/{above}/oom_score_adj").read_text())
        Path("/proc/self/oom_score_adj").write_text(str(min(score + WORSE, _WORST)))


def pin(cpus: Collection[int]) -> None:
    """Pin this process to ``cpus``; if they are no longer available, write a warning and run on any."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        sys.stderr.write(f"supervise: --cpu-affinity: not pinned to the cores {sorted(cpus)}: {error.strerror}\n")
