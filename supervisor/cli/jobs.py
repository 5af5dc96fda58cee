"""The verbs about jobs that are in a supervisor already: status, stream, logs, cancel, retry and jobs; a client's process."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
import msgspec

from supervisor.cli import remote
from supervisor.cli.serving.event_log import visible
from supervisor.client.client import Client, JobView
from supervisor.config.kinds import nearest
from supervisor.errors import RefusedError, UsageError
from supervisor.job import JobStatus
from supervisor.protocol.answers import Accepted

if TYPE_CHECKING:
    from rich.text import Text

LOOK_S = 1.0
"""How often a person sees progress."""

_BAR_CELLS = 24
_PART = 1000

# --- one job --------------------------------------------------------------------------------------------------------------


@click.command(context_settings=remote.HELP)
@click.argument("job", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait until it has ended.")
@remote.as_json
@remote.asks
def status(client: Client, job: str, wait: bool, as_json: bool) -> int:
    """Show a job's status, times, output (its newest progress while it runs) and error.

    Exit codes: 0 if the job is known; with --wait, 1 if it did not complete.
    """
    if wait:
        return show_end(client, job, as_json)
    _show(client.job(job), as_json)
    return 0


def show_end(client: Client, job: str, as_json: bool) -> int:
    """Wait for the end of ``job``, print it as people or programs want it, and give the exit code."""
    view = _until_ended(client, job)
    _show(view, as_json)
    return _exit_code(view)


def _show(view: JobView, as_json: bool) -> None:
    if remote.for_people(as_json):
        from supervisor.cli import tables  # noqa: PLC0415 - rich, which only people wait for

        tables.job(view)
    else:
        remote.put(b"%b\n" % view.text, now=True)


def _exit_code(view: JobView) -> int:
    return 0 if view.status is JobStatus.COMPLETED else 1


def _until_ended(client: Client, job: str) -> JobView:
    """The job as it ended. If standard error is a terminal, one row of it, gone in the end, shows the job meanwhile."""
    if not sys.stderr.isatty():
        *_, last = client.watch(job)
        return last
    from rich.console import Console  # noqa: PLC0415 - only people wait for it

    console = Console(stderr=True, highlight=False)
    began = time.monotonic()
    try:
        for view in client.watch(job, LOOK_S):
            _clear_row()
            if view.status.terminal:
                break
            row = _row(view, time.monotonic() - began)
            row.truncate(max(console.width - 1, 1), overflow="ellipsis")
            console.print(row, end="", soft_wrap=True)
    finally:
        _clear_row()
    return view


def _clear_row() -> None:
    sys.stderr.write("\r\x1b[2K")
    sys.stderr.flush()


def _row(view: JobView, waited_s: float) -> Text:
    from rich.text import Text  # noqa: PLC0415 - as above

    from supervisor.dashboard import progress  # noqa: PLC0415 - as above
    from supervisor.dashboard.text import bar, harmless, span  # noqa: PLC0415 - as above

    running = view.status is JobStatus.IN_PROGRESS
    row = Text.assemble((view.status.value, "cyan" if running else "dim"), f"  {span(waited_s)}")
    if running and view.worker_id:
        row.append(f"  {harmless(view.worker_id)}")
    if view.output:
        found = progress.read(view.output)
        if found.share is not None:
            row.append("  ").append_text(bar(found.share, _BAR_CELLS)).append(f" {found.share:4.0%}")
        row.append(f"  {found.text}")
    return row


class _Chunk(msgspec.Struct):
    output: msgspec.Raw


@click.command(context_settings=remote.HELP)
@click.argument("job", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print each chunk as the API's JSON, one per line.")
@remote.asks
def stream(client: Client, job: str, as_json: bool) -> int:
    """Print what a job yields, from its first chunk on, until it has ended.

    A chunk that is text is printed as it is, without a line end; any other as JSON on a line of its own. Nothing is used up:
    others can read the same chunks. If the supervisor is restarted meanwhile, the command waits for it.

    Exit codes: 0 when the job completed, 1 when it did not.
    """
    return follow(client, job, as_json)


def follow(client: Client, job: str, as_json: bool) -> int:
    """Print the chunks of ``job`` and give the exit code; why it did not complete is said on standard error."""
    at_terminal = sys.stdout.isatty()
    used = inside_line = False
    try:
        for chunk in client.chunks(job):
            if as_json:
                remote.put(chunk + b"\n", now=True)
                continue
            used = True
            output = bytes(msgspec.json.decode(chunk, type=_Chunk).output)
            if not output.startswith(b'"'):
                remote.put((b"\n" if inside_line else b"") + output + b"\n", now=True)
                inside_line = False
            elif text := msgspec.json.decode(output, type=str):
                text = _shown(text) if at_terminal else text
                inside_line = not text.endswith("\n")
                remote.put(text.encode("utf-8", "backslashreplace"), now=True)
    finally:
        if inside_line:
            remote.put(b"\n", now=True)
    view = client.job(job)
    code = _exit_code(view)
    if code:
        remote.complain(f"job {view.id} {view.status.value}: {remote.explain(view.error or 'it has no error')[0]}")
    elif sys.stderr.isatty() and not used and not as_json:
        remote.complain(f"job {view.id} yielded nothing; its output: supervise status {view.id}")
    return code


@click.command(context_settings=remote.HELP)
@click.argument("job", metavar="ID")
@click.option("-f", "--follow", "goes_on", is_flag=True, help="Follow what it prints until it has ended.")
@remote.asks
def logs(client: Client, job: str, goes_on: bool) -> int:
    """Print what a job has printed.

    With --follow, the command waits for a supervisor that is restarted meanwhile.
    """
    at_terminal = sys.stdout.isatty()
    for lines in client.follow_log(job) if goes_on else client.log(job):
        shown = _shown(lines.decode("utf-8", "replace")).encode(sys.stdout.encoding, "backslashreplace")
        remote.put(shown if at_terminal else lines, now=goes_on)
    return 0


def _shown(text: str) -> str:
    return "\n".join(map(visible, text.split("\n")))


# --- several jobs ---------------------------------------------------------------------------------------------------------


@click.command(context_settings=remote.HELP)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@remote.as_json
@remote.asks
def cancel(client: Client, ids: tuple[str, ...], as_json: bool) -> int:
    """Cancel jobs, queued or running.

    A queued job never starts; a running one is stopped, if need be with its worker. An ended job keeps its state.

    Exit codes: 0 when all of them are cancelled now, else 1.
    """
    return _order_each(ids, client.cancel, JobStatus.CANCELLED, as_json)


@click.command(context_settings=remote.HELP)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@remote.as_json
@remote.asks
def retry(client: Client, ids: tuple[str, ...], as_json: bool) -> int:
    """Queue failed and timed-out jobs again, under the same IDs; their old output is deleted.

    \b
    All that failed:
      supervise jobs --all --status FAILED | jq -r .id | xargs supervise retry

    Exit codes: 0 when all of them are queued, else 1.
    """
    return _order_each(ids, client.retry, JobStatus.IN_QUEUE, as_json)


def _order_each(ids: Iterable[str], order: Callable[[str], Accepted], wanted: JobStatus, as_json: bool) -> int:
    """Give ``order`` for each of ``ids`` and say the state of each; 1 if one is unknown, refused or not as ``wanted`` then."""
    code = 0
    for job in ids:
        try:
            state = order(job)
        except RefusedError as error:
            if error.status not in (404, 409):  # nor would the others be taken
                raise
            remote.complain(str(error))
            code = 1
            continue
        if state.status is not wanted:
            code = 1
        if remote.for_people(as_json):
            click.echo(f"{visible(state.id)}  {state.status.value}")
        else:
            remote.put_json(state)
    return code


@click.command(context_settings=remote.HELP)
@click.option("--status", metavar="STATUS", help=f"Only jobs in this state: {', '.join(JobStatus.__members__)}.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@click.option("--all", "without_limit", is_flag=True, help="All of them.")
@remote.as_json
@remote.asks
def jobs(client: Client, status: str | None, limit: int, without_limit: bool, as_json: bool) -> int:
    """List the jobs, the newest first, without input and output."""
    found = client.jobs(_state(status) if status else None, None if without_limit else limit)
    people, shown = remote.for_people(as_json), False
    while part := list(itertools.islice(found, _PART)):
        if people:
            from supervisor.cli import tables  # noqa: PLC0415 - rich, which only people wait for

            tables.jobs(part, titles=not shown)
        else:
            remote.put(b"".join(b"%b\n" % job.text for job in part), now=True)
        shown = True
    if people and not shown:
        click.echo("no jobs", err=True)
    return 0


def _state(word: str) -> JobStatus:
    name = word.strip().upper().replace("-", "_")
    if name not in JobStatus.__members__:
        known = ", ".join(JobStatus.__members__)
        raise UsageError(f"--status: no {word!r}; there are: {known}{nearest(name, JobStatus.__members__)}")
    return JobStatus(name)
