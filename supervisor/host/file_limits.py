"""How many files this process, and the workers below it, may have open (``ulimit -n``); in the supervisor.

The soft limit of most shells and service managers, 1024, is for programs that use select(2). Servers raise it for themselves, and
workers inherit that: a container of RunPod's has a million, and loaders of data use thousands.
"""

from __future__ import annotations

import os
import resource

from supervisor.errors import UsageError

WANTED = 65_536
"""More than a thousand slots and thousands of clients need, and few enough for programs that close all that they could have."""

_BASE = 48
_STREAMS = 3
_FEW_CLIENTS = 16
_EACH_SLOT = 8
"""What is open at least (measured: 21, and for each slot 2, or 6 while its worker is forked), with room for a few clients."""


def raise_limit() -> None:
    """Raise the soft limit to what is wanted, or as far as the hard limit lets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_start() -> None:
    """Raise the limit, and refuse to start where not even one slot would have enough, or too many are taken already: by what
    this process has inherited. For the first moment: a loop that gets none aborts the process.

    Raises:
        UsageError: the limit is too low, or ``/proc`` is not there.
    """
    raise_limit()
    taken = 0
    try:
        taken = len(os.listdir("/proc/self/fd")) - 1 - _STREAMS  # noqa: PTH208 - no paths are needed
    except FileNotFoundError:
        raise UsageError("/proc is not mounted, and processes cannot be found without it") from None
    except OSError:  # none to look with
        pass
    check_limit(1, max(taken, 0))


def for_clients(slots: int) -> int:
    """How many of them clients may have beside that many slots: not all, since who is sent away still holds one for a moment."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = (WANTED if soft == resource.RLIM_INFINITY else soft) - _BASE - _EACH_SLOT * slots
    return max(_FEW_CLIENTS, left * 3 // 4)


def check_limit(slots: int, taken: int = 0) -> None:
    """Refuse to start where that many slots would run out of descriptors, of which others have ``taken`` some.

    Raises:
        UsageError: the limit is too low.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _BASE + _EACH_SLOT * slots + taken
    if soft != resource.RLIM_INFINITY and soft < needed:
        who = f"{slots} slots need" if slots != 1 else "1 slot needs"
        inherited = f" ({taken} of them inherited)" if taken else ""
        raise UsageError(
            f"this process may open {soft} files only, and {who} {needed}{inherited}: "
            f"raise the hard limit, as in `ulimit -n {WANTED}`, LimitNOFILE={WANTED} or --ulimit nofile={WANTED}"
        )
