"""`supervise status ID`; a client's process."""

from __future__ import annotations

import click

from supervisor.cli import remote, waiting
from supervisor.client.client import Client, JobView


@click.command(context_settings=remote.HELP)
@click.argument("job", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait until it has ended.")
@remote.as_json
@remote.asks
def status(client: Client, job: str, wait: bool, as_json: bool) -> int:
    """Show how a job is: its state, times, output (its newest progress while it runs) and error.

    Exit codes: 0 when that is known; with --wait 1 when the job did not complete.
    """
    view = waiting.until_ended(client, job) if wait else client.job(job)
    show(view, as_json)
    return remote.exit_code(view) if wait else 0


def show(view: JobView, as_json: bool) -> None:
    """Print the job as people or programs want it."""
    if remote.for_people(as_json):
        from supervisor.cli import tables  # noqa: PLC0415 - rich, which only people wait for

        tables.job(view)
    else:
        remote.put(b"%b\n" % view.text, now=True)
