"""Notices as log lines: their text, and their fields in the JSON log; pure, in the supervisor.

All notices are worded here. The log's field names are part of the public interface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Union

from supervisor import notice as n
from supervisor.cause import GpusLost
from supervisor.protocol.wording import of_worker, unknown_memory, words, xid

MOST_NAMED = 3
"""Maximum number of changed files to name."""

MOST_PORTS = 5
"""Maximum number of a worker's ports to name."""


def line(notice: n.Notice) -> str:
    """Format ``notice``, after the slot's name if it has one."""
    made = _TEXTS[type(notice)]
    text = made.format(notice) if isinstance(made, str) else made(notice)
    return f"{notice.slot}: {text}" if isinstance(notice, n.SlotNotice) else text


def fields(notice: n.Notice) -> dict[str, Any]:
    """Return the fields of ``notice`` in the JSON log, beside its kind and text.

    ``report`` describes a refresh: its cause, its steps in seconds, and the MiB freed.
    """
    facts: dict[str, Any] = {"slot": notice.slot} if isinstance(notice, n.SlotNotice) else {}
    if isinstance(notice, n.Refreshed):
        facts["report"] = {
            "cause": words(notice.cause),
            "end_s": notice.end_s,
            "release_s": notice.release_s,
            "start_s": notice.start_s,
            "freed_mib": notice.freed_mib,
            "verified": notice.verified,
        }
    elif isinstance(notice, n.StartFailed):
        facts["broken"] = isinstance(notice, n.SlotBroken)
    elif isinstance(notice, n.TemplateRestarts):
        facts["left_behind"] = notice.left_behind
    return facts


def _refreshed(notice: n.Refreshed) -> str:
    total = notice.end_s + notice.release_s + notice.start_s
    freed = "" if notice.freed_mib is None else f", {notice.freed_mib} MiB freed"
    return (
        f"refreshed in {total * 1000:.1f} ms (end {notice.end_s * 1000:.1f}, release {notice.release_s * 1000:.1f},"
        f" start {notice.start_s * 1000:.1f}){freed}{'' if notice.verified else ', unverified'};"
        f" requested by {words(notice.cause)}"
    )


def _next_try(notice: n.StartFailed) -> str:
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
    """Join ``names``, or the first of many."""
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED} more"


def _given_up(notice: n.WebhookGivenUp) -> str:
    tries = f"{notice.tries} tries" if notice.tries > 1 else "1 try"
    return f"webhook of job {notice.job} to {notice.receiver} given up after {tries}: {notice.why}"


def _webhooks_lost(notice: n.WebhooksLost) -> str:
    return f"{notice.count} webhook{'s were' if notice.count > 1 else ' was'} not delivered"


_FAILURES = {
    n.Task.WRITE_STORE: "the job store cannot be written, trying again: ",
    n.Task.REMOVE_OLD_JOBS: "old jobs could not be removed: ",
    n.Task.REMOVE_SECRET: "",  # its error says all
    n.Task.REMOVE_ENDED_SECRET: "a job has ended, and ",
    n.Task.DELIVER_WEBHOOKS: "webhooks wait, trying again: ",
}

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
    n.SlotOut: lambda notice: ("" if isinstance(notice.cause, GpusLost) else "held: ") + words(notice.cause),
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
    n.TaskFailed: lambda notice: _FAILURES[notice.task] + notice.error,
    n.StoreWritable: "the job store can be written again",
    # webhooks
    n.WebhookGivenUp: _given_up,
    n.WebhooksLost: _webhooks_lost,
}
