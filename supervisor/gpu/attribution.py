"""Attributes the processes that NVML lists to workers; runs in the reader process.

NVML identifies a process by a number. On the host that is its pid. In a container it is either the host's pid, which is
meaningless there (nvidia-docker#1483) and may be another process's by chance, or the pid in the container; NVML does not say
which. So in a container

- a reading is not trusted at all if no process here has one of its numbers, or if a worker is listed on a GPU that it was not
  pinned to;
- otherwise numbers of a worker's tree are trusted;
- other numbers are trusted only after NVML has listed a worker's tree with its memory: then it uses the pids of this namespace.
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
"""The pid of ``kthreadd``, the parent of all kernel threads, in the first PID namespace."""

_PIDS = range(1, 1 << 22)
"""The valid pids (Linux, ``PID_MAX_LIMIT``)."""

_MAX_DEPTH = 256


class Attribution:
    """Adds names and slots to listed processes; one for all readings of a source, because it learns NVML's numbering."""

    def __init__(self, *, on_host: bool) -> None:
        """``on_host``: this is the host's PID namespace (``in_host_pid_namespace``), so NVML's numbers are pids."""
        self._on_host = on_host
        self._met: set[int] = set()  # listed numbers that were pids here, of processes that may have exited since
        self._lists_workers = False

    def attribute(self, samples: Sequence[GpuSample], workers: Mapping[str, WorkerRef]) -> list[GpuSample]:
        """Return the samples of one reading with names and slots added to their processes."""
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
    """Return the slot of the worker's tree that ``pid`` is in; empty if it is in none, ``None`` if that is unknown.

    ``slots`` is by the workers' pids, so a dead worker that is still listed is found too.
    """
    for _ in range(_MAX_DEPTH):
        if pid in slots:
            return slots[pid]
        parent = parent_of(pid)
        if not parent:
            return None if parent is None else ""
        pid = parent
    return None


def in_host_pid_namespace() -> bool:
    """Return whether this process is in the first PID namespace, that of the host, whose pids NVML lists."""
    with contextlib.suppress(FileNotFoundError):  # a kernel built without namespaces has only the host's
        if Path("/proc/self/ns/pid").stat().st_ino != _HOST_PID_NAMESPACE:
            return False
    # A sandbox may imitate that number, but has no kernel threads. Their names may be hidden (hidepid).
    name = name_of(_KTHREADD)
    return exists(_KTHREADD) if name is None else name == "kthreadd"


def exists(pid: int) -> bool:
    """Return whether a process of this PID namespace has that pid, even if ``/proc`` hides it."""
    if pid not in _PIDS:
        return False
    try:
        with contextlib.suppress(PermissionError):  # another user's process
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _each(sample: GpuSample, change: Callable[[GpuProcess], GpuProcess]) -> GpuSample:
    processes = sample.processes
    return structs.replace(sample, processes=None if processes is None else tuple(map(change, processes)))
