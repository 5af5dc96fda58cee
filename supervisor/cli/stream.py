"""`supervise stream ID`: the chunks of a job as they come; a client's process."""

from __future__ import annotations

import sys

import click
import msgspec

from supervisor.cli import remote
from supervisor.cli.serving.event_log import visible
from supervisor.client.client import Client


class _Chunk(msgspec.Struct):
    output: msgspec.Raw


@click.command(context_settings=remote.HELP)
@click.argument("job", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print each chunk as the API's JSON, one a line.")
@remote.asks
def stream(client: Client, job: str, as_json: bool) -> int:
    """Print what a job yields, from its first chunk on, until it has ended.

    A chunk that is text is printed as it is, without a line end; any other as JSON on a line of its own. Nothing is used up:
    others can read the same chunks. A supervisor that is started anew meanwhile is waited for.

    Exit codes: 0 when the job completed, 1 when it did not.
    """
    return follow(client, job, as_json)


def follow(client: Client, job: str, as_json: bool) -> int:
    """Print the chunks of ``job`` and give the exit code; why it did not complete is said on standard error."""
    printer = _Printer(sys.stdout.isatty())
    try:
        for chunk in client.chunks(job):
            if as_json:
                remote.put(chunk + b"\n", now=True)
            else:
                printer.put(bytes(msgspec.json.decode(chunk, type=_Chunk).output))
    finally:
        printer.end()
    view = client.job(job)
    if remote.exit_code(view):
        remote.complain(f"job {view.id} {view.status.value}: {remote.explain(view.error or 'it has no error')[0]}")
    elif sys.stderr.isatty() and not printer.used and not as_json:
        remote.complain(f"job {view.id} yielded nothing; its output: supervise status {view.id}")
    return remote.exit_code(view)


class _Printer:
    """Writes texts one behind the other, and everything else on lines of its own."""

    def __init__(self, at_terminal: bool) -> None:
        self.used = False
        self._at_terminal = at_terminal
        self._inside_line = False

    def put(self, chunk: bytes) -> None:
        """Write ``chunk``, which is JSON."""
        self.used = True
        if not chunk.startswith(b'"'):
            self.end()
            remote.put(chunk + b"\n", now=True)
            return
        text = msgspec.json.decode(chunk, type=str)
        if self._at_terminal:
            text = "\n".join(map(visible, text.split("\n")))
        if text:
            self._inside_line = not text.endswith("\n")
            remote.put(text.encode("utf-8", "backslashreplace"), now=True)

    def end(self) -> None:
        """End the line that was begun."""
        if self._inside_line:
            self._inside_line = False
            remote.put(b"\n", now=True)
