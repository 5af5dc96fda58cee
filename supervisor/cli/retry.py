"""`supervise retry ID…`; a client's process."""

from __future__ import annotations

import click

from supervisor.cli import remote
from supervisor.client.client import Client
from supervisor.job import JobStatus


@click.command(context_settings=remote.HELP)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@remote.as_json
@remote.asks
def retry(client: Client, ids: tuple[str, ...], as_json: bool) -> int:
    """Queue jobs once more that failed or timed out, under their ids; their old output is gone.

    \b
    All that failed:
      supervise jobs --all --status FAILED | jq -r .id | xargs supervise retry

    Exit codes: 0 when all of them are queued, else 1.
    """
    return remote.order_each(ids, client.retry, JobStatus.IN_QUEUE, as_json)
