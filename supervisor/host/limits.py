"""How a process stands beside others of its machine: whom the kernel ends when memory is short, and on which cores it runs.

Used in the template process and in workers, before any code of the handler.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection
from pathlib import Path

WORSE = 250
"""What is added from the supervisor to the template, and from there to each worker: the kernel ends a worker before the template,
and that before the supervisor, unless one of them uses a quarter of the machine's memory more than the other (proc(5))."""

_WORST = 1000


def raise_oom_score(above: int) -> None:
    """Be ended sooner than the process ``above`` when memory runs out, and let what this one starts inherit that."""
    with contextlib.suppress(OSError, ValueError):  # a /proc that may not be written: nothing depends on it
        score = int(Path(f"/proc/{above}/oom_score_adj").read_text())
        Path("/proc/self/oom_score_adj").write_text(str(min(score + WORSE, _WORST)))


def pin(cpus: Collection[int]) -> None:
    """Run on ``cpus`` alone; where the system has taken them away meanwhile, say so and run anywhere."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        sys.stderr.write(f"supervise: --cpu-affinity: not pinned to the cores {sorted(cpus)}: {error.strerror}\n")
