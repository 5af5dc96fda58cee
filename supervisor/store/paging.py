"""Pages through all jobs, the newest first; in the supervisor. No page reads more of the store than its share."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from supervisor.errors import RequestError
from supervisor.job import Job, JobStatus
from supervisor.store.store import Store

SPAN, SPANS = 5_000, 20
"""How many jobs one look at the store goes through, and how many looks a page may take: a state that few jobs have may be far
away, and a page with fewer jobs than asked for says where to go on."""


class Page(msgspec.Struct, frozen=True):
    """Some jobs, the newest first; ``next`` continues behind them, ``None``: there are no more."""

    jobs: list[Job]
    next: str | None


def page(
    store: Store,
    find: Callable[[str], Job | None],
    newest: int,
    status: JobStatus | None,
    limit: int,
    after: str | None,
) -> Page:
    """At most ``limit`` jobs (in ``status``) with numbers below ``newest``, without input and output, behind ``after``: what
    ``next`` of the page before says, or the id of a job that ``find`` knows.

    Raises:
        RequestError: 404, ``after`` is neither.
    """
    below = newest if after is None else _place_of(after, find)
    jobs: list[Job] = []
    for _ in range(SPANS):
        floor = max(0, below - SPAN)
        jobs += store.page(below, floor, status, limit - len(jobs))
        below = jobs[-1].seq if len(jobs) == limit else floor
        if len(jobs) == limit or below <= 1:
            break
    return Page(jobs, str(below) if below > 1 else None)


def _place_of(after: str, find: Callable[[str], Job | None]) -> int:
    job = find(after)
    if job is not None:
        return job.seq
    if after.isascii() and after.isdecimal() and len(after) < 19:
        return int(after)
    raise RequestError(404, f"after: no job {after[:128]!r}, and nothing that an answer gave as `next`")
