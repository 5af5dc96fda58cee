"""Notices as lines: their words, and the fields that they have in the JSON log beside these; pure, in the supervisor.

No other file words a notice. The log's field names are part of what readers rely on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Union

import msgspec

from supervisor import notice as n
from supervisor.protocol.wording import held_memory, of_worker, unknown_memory, words, xid

MOST_NAMED = 3
"""How many changed files are named."""

MOST_PORTS = 5
"""How many ports of one worker are named."""


class RefreshFields(msgspec.Struct, frozen=True):
    """``report`` of a refresh: who asked for it, its steps in seconds, and the MiB that came back."""

    cause: str
    end_s: float
    release_s: float
    start_s: float
    freed_mib: int | None
    verified: bool


class Fields(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a notice has in the JSON log beside its kind and its text."""

    slot: str | None = None
    report: RefreshFields | None = None
    broken: bool | None = None
    left_behind: int | None = None


def line(notice: n.Notice) -> str:
    """What there is to say, after the name of the slot if it is about one."""
    made = _TEXTS[type(notice)]
    text = made.format(notice) if isinstance(made, str) else made(notice)
    return f"{notice.slot}: {text}" if isinstance(notice, n.SlotNotice) else text


def fields(notice: n.Notice) -> Fields:
    """The facts that a program may want to read."""
    slot = notice.slot if isinstance(notice, n.SlotNotice) else None
    if isinstance(notice, n.Refreshed):
        return Fields(slot, report=_report(notice))
    if isinstance(notice, (n.StartFailed, n.SlotBroken)):
        return Fields(slot, broken=isinstance(notice, n.SlotBroken))
    return Fields(slot, left_behind=notice.left_behind if isinstance(notice, n.TemplateRestarts) else None)


def _report(notice: n.Refreshed) -> RefreshFields:
    steps = (notice.end_s, notice.release_s, notice.start_s)
    return RefreshFields(words(notice.cause), *steps, notice.freed_mib, notice.verified)


def _refreshed(notice: n.Refreshed) -> str:
    total = notice.end_s + notice.release_s + notice.start_s
    freed = "" if notice.freed_mib is None else f", {notice.freed_mib} MiB freed"
    return (
        f"refreshed in {total * 1000:.1f} ms (end {notice.end_s * 1000:.1f}, release {notice.release_s * 1000:.1f},"
        f" start {notice.start_s * 1000:.1f}){freed}{'' if notice.verified else ', unverified'};"
        f" asked by {words(notice.cause)}"
    )


def _next_try(notice: Union[n.StartFailed, n.SlotBroken]) -> str:
    return words(notice.end) + (f"; next try in {notice.retry_s:g} s" if notice.retry_s is not None else "")


def _port_taken(notice: n.PortTaken) -> str:
    whose = "; ".join(map(_listens, notice.owners))
    return (
        f"the address that it wanted is in use, and {whose}: workers share this machine, so give each a port of its own, "
        "such as 9000 + int(os.environ['SUPERVISE_SLOT_INDEX'])"
    )


def _listens(owner: n.PortOwner) -> str:
    numbers = list(map(str, owner.ports))
    listed = ", ".join(numbers[:MOST_PORTS]) + (", …" if len(numbers) > MOST_PORTS else "")
    return f"the worker in slot {owner.slot} listens on port{'s' if len(numbers) > 1 else ''} {listed}"


def _watched(notice: n.FilesWatched) -> str:
    files = f"{notice.count:,} Python file{'s' if notice.count != 1 else ''}"
    more = f"; there is more than the {notice.most:,} files and folders that are watched at most" if notice.most else ""
    return f"watching {files} in {notice.folder}{more}"


def _reloading(notice: n.Reloading) -> str:
    return f"{_listed(notice.changed)} changed: reloading" if notice.changed else "SIGHUP: reloading"


def _listed(names: Sequence[str]) -> str:
    """``names``, or the first of many."""
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED} more"


def _given_up(notice: n.WebhookGivenUp) -> str:
    tries = f"{notice.tries} tries" if notice.tries > 1 else "1 try"
    return f"webhook of job {notice.job} to {notice.receiver} given up after {tries}: {notice.why}"


def _webhooks_lost(notice: n.WebhooksLost) -> str:
    return f"{notice.count} webhook{'s were' if notice.count > 1 else ' was'} not delivered"


_TEXTS: dict[type, Union[str, Callable[[Any], str]]] = {
    # workers and slots
    n.WorkerReady: "ready (pid {0.pid}, {0.handler}, loaded in {0.load_ms:.1f} ms)",
    n.WorkerRestarts: lambda notice: f"worker (pid {notice.pid}) {of_worker(notice.end)}; restarting",
    n.StartFailed: _next_try,
    n.SlotBroken: _next_try,
    n.Refreshed: _refreshed,
    n.SlotPaused: lambda notice: words(notice.cause),
    n.WorkerStuck: lambda notice: words(notice.obstacle),
    n.WorkerWarned: "{0.text}",
    n.WarningsLeftOut: "more than {0.most} warnings of its worker: the others are left out",
    n.LastMessageUnreadable: "its last message was unreadable: {0.error}",
    n.PortTaken: _port_taken,
    # GPUs
    n.SlotHeld: lambda notice: f"held: {held_memory(notice.memory.gpus)}",
    n.SlotLost: lambda notice: words(notice.cause),
    n.ReleaseUnverified: lambda notice: f"release unverified: {unknown_memory(notice.gpus)}",
    n.HoldsWithoutJob: "holds {0.mib} MiB without having run a job, more than --refresh-above {0.limit_mib}",
    n.ProgramXid: lambda notice: f"GPU {notice.gpu}: {xid(notice.xid)}, which means the program, not the GPU",
    n.XidsUnwatched: "the driver's Xids are not watched: {0.reason}",
    n.RefreshAboveBlind: "--refresh-above {0.limit_mib} has no effect:"
    " NVML does not show how much GPU memory each worker holds",
    # the template
    n.NotPreloaded: "not preloaded: {0.module}: {0.why}",
    n.TemplateRestarts: lambda notice: f"the template process {words(notice.end)}; starting another",
    # the program
    n.FilesWatched: _watched,
    n.Reloading: _reloading,
    n.StoreStalled: "the job store cannot be written, trying again: {0.error}",
    n.StoreWritable: "the job store can be written again",
    n.OldJobsKept: "old jobs could not be removed: {0.error}",
    n.SecretKept: lambda notice: f"a job has ended, and {notice.error}" if notice.ended else str(notice.error),
    # webhooks
    n.WebhooksStalled: "webhooks wait, trying again: {0.error}",
    n.WebhookGivenUp: _given_up,
    n.WebhooksLost: _webhooks_lost,
}
