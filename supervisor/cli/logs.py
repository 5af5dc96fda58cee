"""`supervise logs ID`: what a job printed, or prints; a client's process."""

from __future__ import annotations

import sys

import click

from supervisor.cli import remote
from supervisor.cli.serving.event_log import visible
from supervisor.client.client import Client


@click.command(context_settings=remote.HELP)
@click.argument("job", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on as it prints, until it has ended.")
@remote.asks
def logs(client: Client, job: str, follow: bool) -> int:
    """Print what a job has printed.

    With --follow, a supervisor that is started anew meanwhile is waited for.
    """
    at_terminal = sys.stdout.isatty()
    for lines in client.follow_log(job) if follow else client.log(job):
        remote.put(_shown(lines) if at_terminal else lines, now=follow)
    return 0


def _shown(lines: bytes) -> bytes:
    text = lines.decode("utf-8", "replace")
    return "\n".join(map(visible, text.split("\n"))).encode(sys.stdout.encoding, "backslashreplace")
