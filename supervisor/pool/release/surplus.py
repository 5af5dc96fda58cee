"""How much more of a GPU's memory is in use than belongs to others. Pure arithmetic over two samples; used by the supervisor.

What is not known is never taken for a fact, so the answer is two figures::

    surplus = in use now - in use then - growth of all processes that are not ours

That growth is known of a process that is visible, and listed with its memory. One that NVML names and that this PID namespace
does not see may be ours as well as another's: what it has more than then is counted for us in ``most`` and for it in ``least``;
what it has less was not ours, for it was there then. One that is listed without its memory is taken to keep what it has while it
is listed; if it is gone, nobody knows how much went with it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from supervisor.gpu.records import GpuProcess, GpuSample

IsOurs = Callable[[GpuProcess], bool]


class Surplus(msgspec.Struct, frozen=True):
    """MiB, at most and at least."""

    most: int
    least: int


def surplus(now: GpuSample, then: GpuSample | None, is_ours: IsOurs) -> Surplus | None:
    """What is in use ``now`` that was not in use ``then``, or was in use by us, and is not known to be another's.

    ``None`` where one of the samples does not tell what is in use.
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
    """Processes whose growth since ``then`` may be ours: not visible, and not listed with so much memory then."""
    before = {process.pid: process.memory_mib or 0 for process in (then.processes or () if then else ())}
    return [
        process
        for process in now.processes or ()
        if not (process.visible or is_ours(process)) and before.get(process.pid, -1) < (process.memory_mib or 0)
    ]


def _growth(now: GpuSample, then: GpuSample, is_ours: IsOurs) -> tuple[int, int]:
    """MiB by which others have grown, and by which processes have that may be others."""
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
    """MiB by which others have shrunk, and by which they may have besides."""
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
    if gone:  # with all that no other had, at most
        perhaps += max(
            0, (then.memory_used_mib or 0) - sum(process.memory_mib or 0 for process in then.processes or ())
        )
    return known, perhaps
