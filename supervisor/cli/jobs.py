"""`supervise jobs`: the jobs, newest first; a client's process."""

from __future__ import annotations

import itertools

import click

from supervisor.cli import remote
from supervisor.client.client import Client
from supervisor.config.kinds import nearest
from supervisor.errors import UsageError
from supervisor.job import JobStatus

_PART = 1000


@click.command(context_settings=remote.HELP)
@click.option("--status", metavar="STATUS", help=f"Only jobs in this state: {', '.join(JobStatus.__members__)}.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@click.option("--all", "without_limit", is_flag=True, help="All of them.")
@remote.as_json
@remote.asks
def jobs(client: Client, status: str | None, limit: int, without_limit: bool, as_json: bool) -> int:
    """List the jobs, the newest first, without input and output."""
    found = client.jobs(_state(status) if status else None, None if without_limit else limit)
    if not remote.for_people(as_json):
        while part := list(itertools.islice(found, _PART)):
            remote.put(b"".join(b"%b\n" % job.text for job in part), now=True)
        return 0
    from supervisor.cli import tables  # noqa: PLC0415 - rich, which only people wait for

    shown = False
    while part := list(itertools.islice(found, _PART)):
        tables.jobs(part, titles=not shown)
        shown = True
    if not shown:
        click.echo("no jobs", err=True)
    return 0


def _state(word: str) -> JobStatus:
    name = word.strip().upper().replace("-", "_")
    if name not in JobStatus.__members__:
        known = ", ".join(JobStatus.__members__)
        raise UsageError(f"--status: no {word!r}; there are: {known}{nearest(name, JobStatus.__members__)}")
    return JobStatus(name)
