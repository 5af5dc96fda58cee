"""Pages through all jobs, the newest first; in the supervisor. The rows that one page reads are limited."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from supervisor.errors import RequestError
from supervisor.job import Job, JobStatus
from supervisor.store.store import Store

SPAN, SPANS = 5_000, 20
"""Jobs that one read of the store scans, and reads per page. Jobs in a rare state may be far apart: a page may have fewer jobs
than requested and still have a next one."""


class Page(msgspec.Struct, frozen=True):
    """Some jobs, the newest first; ``next`` continues behind them, ``None`` at the end."""

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
    """List at most ``limit`` jobs (in ``status``) with numbers below ``newest``, without input and output.

    The page begins behind ``after``: the previous page's ``next``, or the id of a job that ``find`` knows.

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
    raise RequestError(404, f"after: {after[:128]!r} is neither a job's id nor a value of `next`")
