"""GPU memory in use beyond that of other processes. Pure arithmetic over two samples; used by the supervisor.

::

    surplus = in use now - in use then - growth of all processes that are not ours

The result is a range, because not every growth is known. It is known for a process that is visible and listed with its memory.
A process that NVML lists and this PID namespace does not show may be ours or not: its growth counts as ours in ``most`` and as
its own in ``least``; its shrinkage was not ours, because it existed then. A process that is listed without its memory is assumed
to keep it while it is listed; how much it released when it exited is unknown.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from supervisor.gpu.records import GpuProcess, GpuSample

IsOurs = Callable[[GpuProcess], bool]


class Surplus(msgspec.Struct, frozen=True):
    """The upper and the lower bound, in MiB."""

    most: int
    least: int


def surplus(now: GpuSample, then: GpuSample | None, is_ours: IsOurs) -> Surplus | None:
    """Return the memory in use ``now`` that was not in use ``then``, or was ours, and is not known to be of other processes.

    ``None`` if one of the samples has no memory in use.
    """
    if (
        then is None
        or now.memory_used_mib is None
        or then.memory_used_mib is None
        or not (now.counted and then.counted)
    ):
        return None
    ours_then = sum(process.memory_mib or 0 for process in then.processes or () if is_ours(process))
    more = now.memory_used_mib - (then.memory_used_mib - ours_then)
    grown, perhaps_grown = _growth(now, then, is_ours)
    shrunk, perhaps_shrunk = _shrinkage(now, then, is_ours)
    least = more - grown - perhaps_grown + shrunk
    return Surplus(least + perhaps_grown + perhaps_shrunk, least)


def newcomers(now: GpuSample, then: GpuSample | None, is_ours: IsOurs) -> list[GpuProcess]:
    """Return the processes whose growth since ``then`` may be ours: not visible, and with less memory or not listed then."""
    before = {process.pid: process.memory_mib or 0 for process in (then.processes or () if then else ())}
    return [
        process
        for process in now.processes or ()
        if not (process.visible or is_ours(process)) and before.get(process.pid, -1) < (process.memory_mib or 0)
    ]


def _growth(now: GpuSample, then: GpuSample, is_ours: IsOurs) -> tuple[int, int]:
    """Return the growth in MiB of other processes: known, and possible besides."""
    before = {process.pid: process.memory_mib for process in then.processes or ()}
    known = perhaps = 0
    for process in now.processes or ():
        if process.memory_mib is None or is_ours(process):
            continue
        had = before.get(process.pid, 0)
        grown = max(0, process.memory_mib - (had or 0))
        if process.visible and had is not None and then.processes is not None:
            known += grown
        else:
            perhaps += grown
    return known, perhaps


def _shrinkage(now: GpuSample, then: GpuSample, is_ours: IsOurs) -> tuple[int, int]:
    """Return the shrinkage in MiB of other processes: known, and possible besides."""
    after = {process.pid: process.memory_mib for process in now.processes or ()}
    listed = [process for process in then.processes or () if not is_ours(process)]
    known = perhaps = 0
    for process in listed:
        if process.memory_mib is None:
            continue
        has = after.get(process.pid, 0)
        if has is None or now.processes is None:
            perhaps += process.memory_mib
        else:
            known += max(0, process.memory_mib - has)
    gone = now.processes is not None and any(
        process.pid not in after for process in listed if process.memory_mib is None
    )
    if gone:  # at most all that no listed process had
        perhaps += max(
            0, (then.memory_used_mib or 0) - sum(process.memory_mib or 0 for process in then.processes or ())
        )
    return known, perhaps
