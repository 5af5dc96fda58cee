"""The lower half of the screen: job counts, running and ended jobs, and the log; pure, in the screen's process."""

from __future__ import annotations

from rich.text import Text

from supervisor.dashboard import progress
from supervisor.dashboard.section import Drawn, Rank, Section
from supervisor.dashboard.table import Cell, Column, View, table
from supervisor.dashboard.text import clock, crop, duration, harmless
from supervisor.notice import Level
from supervisor.protocol.views import EndedJobView, LogLine, RunningJobView, Snapshot

ENDINGS = {
    "COMPLETED": ("✔", "green"),
    "FAILED": ("✖", "red"),
    "CANCELLED": ("-", "yellow"),
    "TIMED_OUT": ("◷", "yellow"),
}
"""Symbol and style of each final state."""

LEVELS = {Level.INFO: "bold", Level.WARNING: "bold yellow", Level.ERROR: "bold red"}
"""Style of the program's own log lines."""

_SLOT_COLOURS = ("cyan", "green", "magenta", "blue", "yellow")
_WITH_TITLES = 4  # minimum rows for a list of jobs to show its titles


def jobs(snapshot: Snapshot, width: int) -> Section:
    """Build the section of job counts, rates and times."""
    counts, stats = snapshot.jobs, snapshot.stats
    counted = _facts(
        ("in queue", f"{counts.in_queue:,}", "yellow" if counts.in_queue else "dim"),
        ("running", f"{counts.in_progress:,}", "cyan" if counts.in_progress else "dim"),
        ("completed", f"{counts.completed:,}", "green" if counts.completed else "dim"),
        ("failed", f"{counts.failed:,}", "bold red" if counts.failed else "dim"),
        ("retried", f"{counts.retried:,}", "yellow" if counts.retried else "dim"),
    )
    rates = _facts(("jobs/s", f"{stats.jobs_per_s:.1f}", "bold" if stats.jobs_per_s else "dim"))
    for name, middle, most in (
        ("waited", stats.delay_p50, stats.delay_p99),
        ("ran", stats.execution_p50, stats.execution_p99),
    ):
        if middle is not None and most is not None:
            rates.append("   ").append(f"{name} p50 ", "dim").append(duration(middle))
            rates.append(" p99 ", "dim").append(duration(most))

    lines = [counted, rates]
    if counted.cell_len + rates.cell_len + 6 <= width:
        lines = [Text.assemble(counted, "      ", rates)]
    size = 1 + len(lines)
    return Section(Rank.JOBS, "jobs", 2, size, size, lambda rows, _: Drawn(lines[:rows]))


def _facts(*facts: tuple[str, str, str]) -> Text:
    return Text("   ").join(Text.assemble((value, style), (f" {name}", "dim")) for name, value, style in facts)


def running(snapshot: Snapshot) -> Section:
    """Build the section of running jobs, oldest first."""
    views = sorted(snapshot.running, key=lambda job: job.started_at)

    slot = max((len(job.slot) for job in views), default=4)
    columns: list[Column[RunningJobView]] = [
        Column("id", lambda job: Text(harmless(job.id)), 10, 40),
        Column("slot", lambda job: Text(job.slot), min(slot, 8), slot, 2),
        Column("for", lambda job: Text(duration(max(snapshot.at - job.started_at, 0))), 7, 7, 1, "right"),
        Column("progress", lambda job: progress.shown(job.progress), 14, 60),
    ]
    if any(job.attempt > 1 for job in views):
        columns.insert(3, Column("", _attempt, 9, 9, 3))
    size = max(len(views), min(len(snapshot.workers), 16), 1)
    return _listing(Rank.RUNNING, "running", columns, views, "nothing runs", size, (2, min(2 + size, 6)))


def _attempt(job: RunningJobView) -> Text:
    return Text(f"attempt {job.attempt}" if job.attempt > 1 else "", "yellow")


def ended(snapshot: Snapshot) -> Section:
    """Build the section of ended jobs, newest first."""
    views = sorted(snapshot.ended, key=lambda job: job.ended_at, reverse=True)

    def status(job: EndedJobView) -> Cell:
        mark, style = ENDINGS.get(job.status, ("?", "default"))
        return Text(f"{mark} {job.status}", style)

    def ran(job: EndedJobView) -> Cell:
        return Text("-", "dim") if job.execution_time is None else Text(duration(job.execution_time))

    worker = max((len(job.worker_id or "") for job in views), default=6)
    columns: list[Column[EndedJobView]] = [
        Column("at", lambda job: Text(clock(job.ended_at), "dim"), 8, 8, 1),
        Column("status", status, 11, 11),
        Column("id", lambda job: Text(harmless(job.id)), 17, 38),
        Column("worker", lambda job: Text(job.worker_id or "-"), min(max(worker, 6), 10), worker, 4),
        Column("waited", lambda job: Text(duration(job.delay_time)), 7, 7, 5, "right"),
        Column("ran", ran, 7, 7, 2, "right"),
    ]
    if any(job.error for job in views):
        columns.append(Column("error", lambda job: Text(harmless(job.error or ""), "red"), 24, 160, 3))
    return _listing(Rank.ENDED, "ended", columns, views, "nothing has ended yet", max(len(views), 1), (3, 6))


def _listing(
    rank: Rank,
    title: str,
    columns: list[Column[View]],
    views: list[View],
    nothing: str,
    size: int,
    needs: tuple[int, int],
) -> Section:
    total = len(views)

    def draw(rows: int, width: int) -> Drawn:
        if not total:
            return Drawn([Text(nothing, "dim")])
        titled = rows > size or rows >= _WITH_TITLES
        titles, lines = table(columns, views[: max(rows - titled, 0)], width)
        note = "" if len(lines) == total else f"{len(lines)} of {total}"
        return Drawn([titles, *lines] if titled else lines, note)

    return Section(rank, title, *needs, 2 + size, draw)


def log(snapshot: Snapshot) -> Section:
    """Build the section of the latest log lines of workers and the program, oldest first."""
    order = {view.slot: n for n, view in enumerate(snapshot.workers)}
    name = min(max((len(slot) for slot in order), default=4), 10)

    def line(entry: LogLine, width: int) -> Text:
        text = Text.assemble((f"{clock(entry.at)} ", "dim")) if width >= 60 else Text()
        if entry.slot is None:
            style = LEVELS[entry.level or Level.INFO]
            return text.append(f"{'·':<{name}} ", "dim").append(harmless(entry.text), style)
        colour = _SLOT_COLOURS[order.get(entry.slot, 0) % len(_SLOT_COLOURS)]
        text.append(f"{crop(entry.slot, name):<{name}} ", colour)
        if entry.job is not None and width >= 60:
            text.append(f"{crop(harmless(entry.job), 8 if width < 110 else 16)} ", "dim")
        return text.append(harmless(entry.text))

    def draw(rows: int, width: int) -> Drawn:
        newest = snapshot.log[-rows:] if rows else ()
        return Drawn([line(entry, width) for entry in newest] or [Text("nothing was printed yet", "dim")])

    return Section(Rank.LOG, "log", 3, 6, 10_000, draw)
