"""`supervise top`: the live dashboard of a running supervisor, from anywhere; a client's process.

`supervise HANDLER` starts the same thing with ``--embedded`` in its own terminal, on a private socket.
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
from supervisor.dashboard.view import Look, picture
from supervisor.errors import UnreachableError
from supervisor.protocol.views import Snapshot

_PLAIN_WIDTH = 100
_FIRST_S = 5.0  # how long an embedded screen waits for its supervisor's first answer


@click.command(context_settings=remote.HELP)
@click.option("--once", is_flag=True, help="Print one picture and exit; the default when the output is not a terminal.")
@click.option("--width", type=click.IntRange(1, 1000), help="Columns of that picture.")
@click.option("--height", type=click.IntRange(1, 1000), help="Rows of that picture.  [default: as many as it needs]")
@click.option("--embedded", is_flag=True, hidden=True)
@remote.asks
def top(client: Client, once: bool, width: int | None, height: int | None, embedded: bool) -> int:
    """Live dashboard of a running supervisor: GPUs, slots, jobs, log.

    Keys: q quits, up and down select a slot, r refreshes it, l shows more log, p pauses, ? helps.

    Exit codes: 0 when you quit or the supervisor ended in good order, 1 when it is not there or vanished.
    """
    if embedded:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's, at once
    first = _first(client, _FIRST_S if embedded else 0.0)
    if once or width or height or not terminal.usable():
        _print(first, width, height)
        return 0
    ending = Live(client, first, _stopper() if embedded else None).run()
    if ending.message:
        click.echo(f"supervise: {ending.message}", err=True)
    return ending.code


def _first(client: Client, patience: float) -> Snapshot:
    """The first snapshot; a supervisor that is about to listen is given ``patience`` seconds."""
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
    console.print(picture(snapshot, columns, height, Look(keys=False)), soft_wrap=True)


def _stopper() -> Callable[[], None]:
    """A function that sends the supervisor, which started this screen, what Ctrl-C would send it."""
    parent = os.getppid()

    def stop() -> None:
        if os.getppid() == parent:  # else it is gone, and its number may be somebody else's
            os.kill(parent, signal.SIGINT)

    return stop
