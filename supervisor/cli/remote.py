"""What the client commands share: whom they ask, and how they answer; a client's process."""

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
    help="Print the API's JSON, one object per line; the default when the output is not a terminal.",
)


def asks(command: Callable[..., int]) -> Callable[..., int]:
    """Give ``command`` the options that name a supervisor, and a ``Client`` of it as its first argument."""

    @click.option(
        "--url",
        metavar="URL",
        envvar="SUPERVISE_URL",
        default=DEFAULT_URL,
        show_default=True,
        help="Where the supervisor is.",
    )
    @click.option("--api-key", metavar="KEY", envvar="SUPERVISE_API_KEY", help="Its API key, if it needs one.")
    @functools.wraps(command)
    def run(*args: Any, url: str, api_key: str | None, **options: Any) -> int:
        return command(Client(url, api_key), *args, **options)

    return run


def for_people(as_json: bool) -> bool:
    """Whether somebody looks at the output who did not ask for JSON."""
    return not as_json and sys.stdout.isatty()


def put(data: bytes, *, now: bool = False) -> None:
    """Write ``data`` to standard output; ``now``: at once."""
    sys.stdout.buffer.write(data)
    if now:
        sys.stdout.buffer.flush()


def put_json(value: Any) -> None:
    """Write a line of JSON: ``value``, or the text that a supervisor wrote."""
    put(msgspec.json.encode(value) + b"\n", now=True)


def complain(text: str) -> None:
    """Say on standard error what went wrong, of several things."""
    click.echo(f"supervise: {visible(text)}", err=True)


def explain(error: str) -> tuple[str, str]:
    """A job's error as one line to read, and what else there is of it."""
    raised = raised_in(error)
    if raised is None:
        head, _, rest = error.strip().partition("\n")
        return head, rest
    return raised.line.partition("\n")[0], raised.error_traceback
