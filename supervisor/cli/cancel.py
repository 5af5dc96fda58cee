"""`supervise cancel ID…`; a client's process."""

from __future__ import annotations

import click

from supervisor.cli import remote
from supervisor.client.client import Client
from supervisor.job import JobStatus


@click.command(context_settings=remote.HELP)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@remote.as_json
@remote.asks
def cancel(client: Client, ids: tuple[str, ...], as_json: bool) -> int:
    """Cancel jobs, queued or running.

    A queued job never starts; a running one is stopped, if need be with its worker. One that has ended keeps its state.

    Exit codes: 0 when all of them are cancelled now, else 1.
    """
    return remote.order_each(ids, client.cancel, JobStatus.CANCELLED, as_json)
