"""Tells whose the processes are that NVML lists; runs in the reader process.

NVML names a process by a number. On the host that is its pid. In a container it is the host's pid, which means nothing there
(nvidia-docker#1483) and may by chance be that of another process; or it is the pid in the container. Nothing says which. So in a
container numbers are believed

- not at all in a reading with one that no process has here, or with a worker's on a GPU that it was not pinned to;
- otherwise, as those of a worker's tree;
- as those of others only once NVML has listed a worker's tree with its memory: then it names processes by their pids here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import structs

from supervisor.gpu.proc import name_of, parent_of
from supervisor.gpu.records import GpuProcess, GpuSample, WorkerRef

_HOST_PID_NAMESPACE = 0xEFFFFFFC
"""The inode number of the first PID namespace (Linux, ``include/linux/proc_ns.h``)."""

_KTHREADD = 2
"""The pid of ``kthreadd``, the parent of all threads of the kernel, in the first PID namespace."""

_PIDS = range(1, 1 << 22)
"""What a pid can be (Linux, ``PID_MAX_LIMIT``)."""

_MAX_DEPTH = 256


class Attribution:
    """Adds names and slots to listed processes; one for all readings of a source, because it learns how NVML names them."""

    def __init__(self, *, on_host: bool) -> None:
        """``on_host``: this is the host's PID namespace (``in_host_pid_namespace``), so NVML's numbers are pids."""
        self._on_host = on_host
        self._met: set[int] = set()  # listed numbers that processes here had, which may have died since
        self._lists_workers = False

    def attribute(self, samples: Sequence[GpuSample], workers: Mapping[str, WorkerRef]) -> list[GpuSample]:
        """The samples of one reading, whose processes are numbers so far, with all that is known of those."""
        slots = {ref.pid: slot for slot, ref in workers.items()}
        listed = [(sample.uuid, process) for sample in samples for process in sample.processes or ()]
        pids = {process.pid for _, process in listed}
        here = {pid for pid in pids if exists(pid)}
        owners = {pid: _owner(pid, slots) for pid in pids}
        strays = any(
            (slot := owners[process.pid]) and workers[slot].uuids and uuid not in workers[slot].uuids
            for uuid, process in listed
        )
        if not self._on_host and (strays or not pids <= here | self._met | slots.keys()):
            return [_each(sample, lambda process: structs.replace(process, visible=False)) for sample in samples]
        self._met = (self._met & pids) | here
        if any(process.memory_mib and owners[process.pid] for _, process in listed):
            self._lists_workers = True
        believed = self._on_host or self._lists_workers

        def attributed(process: GpuProcess) -> GpuProcess:
            slot = owners[process.pid]
            visible = bool(slot) or (slot is not None and believed)
            return structs.replace(process, name=name_of(process.pid), slot=slot or None, visible=visible)

        return [_each(sample, attributed) for sample in samples]


def _owner(pid: int, slots: Mapping[int, str]) -> str | None:
    """The slot in whose worker's tree ``pid`` is, of ``slots`` by their workers' pids; empty for a process that is in none,
    ``None`` where that cannot be told. A worker that is dead but still listed is known by its own pid."""
    for _ in range(_MAX_DEPTH):
        if pid in slots:
            return slots[pid]
        parent = parent_of(pid)
        if not parent:
            return None if parent is None else ""
        pid = parent
    return None


def in_host_pid_namespace() -> bool:
    """Whether this process is in the first PID namespace, that of the host, whose pids NVML lists."""
    with contextlib.suppress(FileNotFoundError):  # a kernel that was built without namespaces has the host's alone
        if Path("/proc/self/ns/pid").stat().st_ino != _HOST_PID_NAMESPACE:
            return False
    # A sandbox may imitate that number, but has no threads of the kernel. Their names may be hidden (hidepid).
    name = name_of(_KTHREADD)
    return exists(_KTHREADD) if name is None else name == "kthreadd"


def exists(pid: int) -> bool:
    """Whether a process of this PID namespace has that pid, also when ``/proc`` hides it."""
    if pid not in _PIDS:
        return False
    try:
        with contextlib.suppress(PermissionError):  # somebody else's
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _each(sample: GpuSample, change: Callable[[GpuProcess], GpuProcess]) -> GpuSample:
    processes = sample.processes
    return structs.replace(sample, processes=None if processes is None else tuple(map(change, processes)))
