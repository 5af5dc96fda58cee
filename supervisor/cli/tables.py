"""Tables for the client commands' output on a terminal, and a job's details; a client's process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from rich.console import Console
from rich.text import Text

from supervisor.cli.remote import explain
from supervisor.cli.serving.event_log import visible
from supervisor.client.client import JobView
from supervisor.dashboard.machine import MARKS
from supervisor.dashboard.table import Column, View, table
from supervisor.dashboard.text import duration, harmless, mib
from supervisor.protocol.views import WorkerView

_STYLES = {"COMPLETED": "green", "FAILED": "red", "TIMED_OUT": "red", "CANCELLED": "yellow", "IN_PROGRESS": "cyan"}
_NONE = "-"
_LEAST = 12
_LABEL = 10


def column(
    title: str,
    views: Sequence[View],
    text_of: Callable[[View], object],
    rank: int = 0,
    *,
    right: bool = False,
    shrinks: bool = False,
    style: Callable[[View], str] | None = None,
) -> Column[View]:
    """Make a column of ``text_of`` each of ``views``, None as a dash; as wide as the longest, or less if it ``shrinks``."""

    def cell(view: View) -> Text:
        value = text_of(view)
        return Text(_NONE if value is None else harmless(str(value)), style(view) if style else "")

    most = max([len(title), *(cell(view).cell_len for view in views)])
    least = min(_LEAST, most) if shrinks else most
    return Column(title, cell, least, most, rank, "right" if right else "left")


def show(columns: Sequence[Column[View]], views: Sequence[View], *, titles: bool = True) -> None:
    """Print a table that fits the terminal's width."""
    console = Console(highlight=False)
    head, lines = table(columns, views, console.width)
    for line in [head, *lines] if titles else lines:
        line.rstrip()
        console.print(line, soft_wrap=True)


def jobs(views: Sequence[JobView], *, titles: bool = True) -> None:
    """Print a line for each job."""
    columns = [
        column("id", views, lambda job: job.id),
        column("status", views, lambda job: job.status.value, style=_status_style),
        column("waited", views, lambda job: duration(job.delay_time), 2, right=True),
        column("ran", views, lambda job: known(job.execution_time, duration), 1, right=True),
        column("worker", views, lambda job: job.worker_id, 3),
        column("retries", views, lambda job: job.retries, 4, right=True),
    ]
    if any(job.error for job in views):
        columns.append(column("error", views, lambda job: explain(job.error)[0] if job.error else "", 5, shrinks=True))
    show(columns, views, titles=titles)


def workers(views: Sequence[WorkerView]) -> None:
    """Print a line for each slot."""
    columns = [
        column("slot", views, lambda view: view.slot),
        column("state", views, lambda view: view.state, style=lambda view: MARKS.get(view.state, ("", ""))[1]),
        column("pid", views, lambda view: view.pid, 2, right=True),
        column("generation", views, lambda view: view.generation, 8, right=True),
        column("jobs", views, lambda view: view.jobs, 3, right=True),
        column("refreshes", views, lambda view: view.refreshes, 5, right=True),
        column("restarts", views, lambda view: view.restarts, 4, right=True),
        column("memory", views, lambda view: known(view.gpu_memory_mib, mib), 6, right=True),
        column(
            "last refresh",
            views,
            lambda view: known(view.last_refresh, lambda done: duration(done.total_ms)),
            9,
            right=True,
        ),
        column("running", views, lambda view: ", ".join(view.running) or None, 7, shrinks=True),
    ]
    if any(view.reason for view in views):
        columns.append(column("reason", views, lambda view: view.reason or "", 1, shrinks=True))
    show(columns, views)


def job(view: JobView) -> None:
    """Print a job's details, one per line."""
    console = Console(highlight=False)

    def line(name: str, text: str, style: str = "") -> None:
        console.print(Text.assemble((f"{name:<{_LABEL}}", "dim"), (text, style)), soft_wrap=True)

    line("id", harmless(view.id))
    line("status", view.status.value, _status_style(view))
    line("waited", duration(view.delay_time))
    if view.execution_time is not None:
        line("ran", duration(view.execution_time))
    if view.worker_id:
        line("worker", harmless(view.worker_id))
    if view.retries:
        line("retries", str(view.retries))
    if view.error is not None:
        head, rest = explain(view.error)
        line("error", visible(head), "red")
        if rest.strip():
            console.print(Text(_indented(rest)), soft_wrap=True)
    if view.output:
        text = msgspec.json.format(bytes(view.output), indent=2).decode("utf-8", "replace")
        line("output" if view.status.terminal else "progress", _indented(text).lstrip())


def _indented(text: str) -> str:
    return "\n".join(f"{'':{_LABEL}}{visible(line)}" for line in text.strip("\n").split("\n"))


def _status_style(view: JobView) -> str:
    return _STYLES.get(view.status.value, "")


def known(value: View | None, text_of: Callable[[View], str]) -> str | None:
    """Return ``text_of(value)``, or None if there is no value."""
    return None if value is None else text_of(value)
