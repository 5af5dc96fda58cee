"""Options, client and output that the client commands share; a client's process."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from supervisor.cli.serving.event_log import visible
from supervisor.client.client import DEFAULT_URL, Client
from supervisor.protocol.job_error import raised_in

HELP = {"help_option_names": ["-h", "--help"]}

as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the API's JSON, one object per line; the default if the output is not a terminal.",
)


def with_client(command: Callable[..., int]) -> Callable[..., int]:
    """Add ``--url`` and ``--api-key`` to ``command``, and pass it a ``Client`` as its first argument."""

    @click.option(
        "--url",
        metavar="URL",
        envvar="SUPERVISE_URL",
        default=DEFAULT_URL,
        show_default=True,
        help="The supervisor's URL.",
    )
    @click.option(
        "--api-key", metavar="KEY", envvar="SUPERVISE_API_KEY", help="The supervisor's API key, if it has one."
    )
    @functools.wraps(command)
    def run(*args: Any, url: str, api_key: str | None, **options: Any) -> int:
        return command(Client(url, api_key), *args, **options)

    return run


def for_terminal(as_json: bool) -> bool:
    """Return whether to print tables: the output is a terminal, and JSON was not requested."""
    return not as_json and sys.stdout.isatty()


def put(data: bytes, *, now: bool = False) -> None:
    """Write ``data`` to standard output; ``now`` flushes it."""
    sys.stdout.buffer.write(data)
    if now:
        sys.stdout.buffer.flush()


def put_json(value: Any) -> None:
    """Write ``value`` as a line of JSON."""
    put(msgspec.json.encode(value) + b"\n", now=True)


def print_error(text: str) -> None:
    """Print an error on standard error; the command goes on."""
    click.echo(f"supervise: {visible(text)}", err=True)


def explain(error: str) -> tuple[str, str]:
    """Split a job's error into one readable line and the rest."""
    raised = raised_in(error)
    if raised is None:
        head, _, rest = error.strip().partition("\n")
        return head, rest
    return raised.line.partition("\n")[0], raised.error_traceback
