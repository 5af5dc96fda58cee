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
_MOST_NAMED = 5


def hint(error: str, slot: str, pids: Mapping[str, int]) -> str | None:
    """What to tell a person whose worker in ``slot`` failed with ``error``; None if it is not about a port of a sibling's.

    ``pids`` are the workers by slot. It reads ``/proc`` for some milliseconds, so ask once for a worker.
    """
    if not _IN_USE.search(error):
        return None
    named = {int(number) for groups in _PORT.findall(error) for number in groups if number}
    family = picture()
    listeners = _listeners()
    taken = {
        other: ports
        for other, pid in pids.items()
        if other != slot and (ports := _ports(tree(family, {pid}), listeners))
    }
    if named:
        taken = {other: ports & named for other, ports in taken.items() if ports & named}
    if not taken:
        return None
    whose = "; ".join(_described(other, ports) for other, ports in taken.items())
    return (
        f"the address that it wanted is in use, and {whose}: workers share this machine, so give each a port of its own, "
        "such as 9000 + int(os.environ['SUPERVISE_SLOT_INDEX'])"
    )


def _described(slot: str, ports: Collection[int]) -> str:
    numbers = [str(port) for port in sorted(ports)]
    listed = ", ".join(numbers[:_MOST_NAMED]) + (", …" if len(numbers) > _MOST_NAMED else "")
    return f"the worker in slot {slot} listens on port{'s' if len(numbers) > 1 else ''} {listed}"


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
