"""The limit of open files of this process and its workers (``ulimit -n``); in the supervisor.

The soft limit of most shells and service managers, 1024, is for programs that use select(2). Servers raise it, and workers
inherit it: a container of RunPod's has a million, and data loaders use thousands.
"""

from __future__ import annotations

import os
import resource

from supervisor.errors import UsageError

WANTED = 65_536
"""More than a thousand slots and thousands of clients need, and few enough for programs that close every possible descriptor."""

_BASE = 48
_STREAMS = 3
_FEW_CLIENTS = 16
_EACH_SLOT = 8
"""Descriptors needed at least (measured: 21, and for each slot 2, or 6 while its worker is forked), with a few clients."""


def raise_limit() -> None:
    """Raise the soft limit to ``WANTED``, or to the hard limit if that is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_start() -> None:
    """Raise the limit, and check that it allows for one slot beside the inherited descriptors. Call it first: an event loop
    that gets no descriptor aborts the process.

    Raises:
        UsageError: the limit is too low, or ``/proc`` is not mounted.
    """
    raise_limit()
    taken = 0
    try:
        taken = len(os.listdir("/proc/self/fd")) - 1 - _STREAMS  # noqa: PTH208 - no paths are needed
    except FileNotFoundError:
        raise UsageError("/proc is not mounted, and processes cannot be found without it") from None
    except OSError:  # no descriptor left for the listing
        pass
    check_limit(1, max(taken, 0))


def for_clients(slots: int) -> int:
    """Return the descriptors for clients beside ``slots`` slots: not all, since rejected clients hold one for a moment."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = (WANTED if soft == resource.RLIM_INFINITY else soft) - _BASE - _EACH_SLOT * slots
    return max(_FEW_CLIENTS, left * 3 // 4)


def check_limit(slots: int, taken: int = 0) -> None:
    """Check that ``slots`` slots have enough descriptors, beside ``taken`` inherited ones.

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
