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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from supervisor.gpu.records import GpuProcess, GpuSample, WorkerRef
from supervisor.gpu.source import name_of, parent_of

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
        owners = _Owners(workers)
        listed = {process.pid for process in _processes(samples)}
        here = {pid for pid in listed if exists(pid)}
        origins = {pid: owners.origin_of(pid) for pid in listed}
        if not self._on_host and (
            not listed <= here | self._met | owners.workers or _strays(samples, origins, workers)
        ):
            return [
                _each(sample, lambda process: msgspec.structs.replace(process, visible=False)) for sample in samples
            ]
        self._met = (self._met & listed) | here
        if any(process.memory_mib and origins[process.pid].slot is not None for process in _processes(samples)):
            self._lists_workers = True
        believed = self._on_host or self._lists_workers

        def attributed(process: GpuProcess) -> GpuProcess:
            origin = origins[process.pid]
            visible = origin.slot is not None or (origin.known and believed)
            return msgspec.structs.replace(process, name=name_of(process.pid), slot=origin.slot, visible=visible)

        return [_each(sample, attributed) for sample in samples]


class _Origin(msgspec.Struct, frozen=True):
    """The slot of the worker that a process is or descends from; ``known`` is false when its ancestors are not all seen."""

    slot: str | None
    known: bool


class _Owners:
    """Finds the origin of processes; made anew for each reading, so that what it read is one moment's."""

    def __init__(self, workers: Mapping[str, WorkerRef]) -> None:
        self._slots = {ref.pid: slot for slot, ref in workers.items()}
        self.workers = frozenset(self._slots)

    def origin_of(self, pid: int) -> _Origin:
        """A worker that is dead but still listed is known by its own pid."""
        for _ in range(_MAX_DEPTH):
            slot = self._slots.get(pid)
            if slot is not None:
                return _Origin(slot, known=True)
            parent = parent_of(pid)
            if parent is None:
                break
            if parent == 0:
                return _Origin(None, known=True)
            pid = parent
        return _Origin(None, known=False)


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
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _strays(samples: Sequence[GpuSample], origins: Mapping[int, _Origin], workers: Mapping[str, WorkerRef]) -> bool:
    """Whether one that is listed on a GPU would be of a worker that was pinned to others."""
    for sample in samples:
        for process in sample.processes or ():
            slot = origins[process.pid].slot
            if slot is not None and workers[slot].uuids and sample.uuid not in workers[slot].uuids:
                return True
    return False


def _processes(samples: Sequence[GpuSample]) -> Iterator[GpuProcess]:
    for sample in samples:
        yield from sample.processes or ()


def _each(sample: GpuSample, change: Callable[[GpuProcess], GpuProcess]) -> GpuSample:
    processes = sample.processes
    return msgspec.structs.replace(sample, processes=None if processes is None else tuple(map(change, processes)))
