"""Who of our workers has the port that another one wanted; in the supervisor.

RunPod gives each worker a container, so a handler may listen on a fixed port there. Here the second worker finds it taken.
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
    """Which workers have the port that the one in ``slot`` wanted and failed with ``error``: their ports by slot, those named in
    ``error`` alone if it names any. Nobody, if it is not about a port of a sibling's.

    ``pids`` are the workers by slot. It reads ``/proc`` for some milliseconds, so ask once for a worker.
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
    """The port of each listening TCP socket, by what a descriptor of it is called in ``/proc/PID/fd`` (proc(5))."""
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
        with contextlib.suppress(OSError):  # it ended, or belongs to another user
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found.add(listeners.get(os.readlink(descriptor), 0))  # noqa: PTH115 - a socket is no path
    return found - {0}
