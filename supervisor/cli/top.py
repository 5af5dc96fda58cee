"""`supervise top`: the live dashboard of a running supervisor; a client's process.

`supervise HANDLER` starts it with ``--embedded`` in its own terminal, on a private socket.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import click
from rich.console import Console

from supervisor.cli import remote
from supervisor.client.client import Client
from supervisor.dashboard import terminal
from supervisor.dashboard.live import Live
from supervisor.dashboard.view import ViewState, picture
from supervisor.errors import UnreachableError
from supervisor.protocol.views import Snapshot

_PLAIN_WIDTH = 100
_FIRST_S = 5.0  # how long an embedded screen waits for the first snapshot


@click.command(context_settings=remote.HELP)
@click.option("--once", is_flag=True, help="Print one snapshot and exit; the default if the output is not a terminal.")
@click.option("--width", type=click.IntRange(1, 1000), help="Columns of the snapshot.")
@click.option("--height", type=click.IntRange(1, 1000), help="Rows of the snapshot.  [default: as many as needed]")
@click.option("--embedded", is_flag=True, hidden=True)
@remote.with_client
def top(client: Client, once: bool, width: int | None, height: int | None, embedded: bool) -> int:
    """Live dashboard of a running supervisor: GPUs, slots, jobs, log.

    Keys: q quits, up and down select a slot, r refreshes it, l shows more log, p pauses, ? helps.

    Exit codes: 0 after you quit or the supervisor stopped normally, 1 if it is unreachable or vanished.
    """
    if embedded:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    first = _first(client, _FIRST_S if embedded else 0.0)
    if once or width or height or not terminal.usable():
        _print(first, width, height)
        return 0
    end = Live(client, first, _stopper() if embedded else None).run()
    if end.message:
        click.echo(f"supervise: {end.message}", err=True)
    return end.code


def _first(client: Client, patience: float) -> Snapshot:
    """Fetch the first snapshot; wait up to ``patience`` seconds for a supervisor that does not listen yet."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return client.snapshot()
        except UnreachableError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.05)


def _print(snapshot: Snapshot, width: int | None, height: int | None) -> None:
    console = Console(highlight=False)
    columns = width or (console.width if console.is_terminal else _PLAIN_WIDTH)
    console.print(picture(snapshot, columns, height, ViewState(keys=False)), soft_wrap=True)


def _stopper() -> Callable[[], None]:
    """Return a function that sends SIGINT to the supervisor that started this screen."""
    parent = os.getppid()

    def stop() -> None:
        if os.getppid() == parent:  # else it has exited, and its pid may have been reused
            os.kill(parent, signal.SIGINT)

    return stop
