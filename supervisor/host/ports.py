"""Finds the worker that occupies a port that another one needs; in the supervisor.

RunPod gives each worker a container, so a handler may listen on a fixed port there. Here the second worker finds it in use.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from supervisor.host.processes import picture, tree

_IN_USE = re.compile(r"address already in use|EADDRINUSE|Errno 98\b", re.IGNORECASE)
_PORT = re.compile(r"', (\d{1,5})[,)]|\bport[ =:]+(\d{1,5})\b|(?:\d\.\d{1,3}|localhost|\]):(\d{1,5})\b", re.IGNORECASE)
_LISTEN = "0A"  # TCP_LISTEN of the kernel's tcp_states.h


def taken(error: str, slot: str, pids: Mapping[str, int]) -> dict[str, set[int]]:
    """Return the ports of other workers by slot, if the worker in ``slot`` failed with ``error`` because a port is in use.

    If ``error`` names ports, only those; empty if no sibling has the port. ``pids`` are the workers by slot. It reads ``/proc``
    for some milliseconds, so call it once for each worker.
    """
    if not _IN_USE.search(error):
        return {}
    named = {int(number) for groups in _PORT.findall(error) for number in groups if number}
    family = picture()
    listeners = _listeners()
    found = {other: _ports(tree(family, {pid}), listeners) for other, pid in pids.items() if other != slot}
    return {
        other: ports for other, open_ports in found.items() if (ports := open_ports & named if named else open_ports)
    }


def _listeners() -> dict[str, int]:
    """Return the port of each listening TCP socket, by the target of its links in ``/proc/PID/fd`` (proc(5))."""
    found = {}
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):  # no such protocol here
            for line in Path(file).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    found[f"socket:[{fields[9]}]"] = int(fields[1].rpartition(":")[2], 16)
    return found


def _ports(pids: Collection[int], listeners: Mapping[str, int]) -> set[int]:
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it exited, or belongs to another user
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found.add(listeners.get(os.readlink(descriptor), 0))  # noqa: PTH115 - a socket is no path
    return found - {0}
