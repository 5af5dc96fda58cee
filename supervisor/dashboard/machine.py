"""The upper half of the screen: the GPUs and their slots; pure, in the screen's process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rich.text import Text

from supervisor.dashboard import progress
from supervisor.dashboard.section import Drawn, Rank, Section, window
from supervisor.dashboard.table import Cell, Column, Span, table
from supervisor.dashboard.text import bar, clock, crop, duration, harmless, level, mib
from supervisor.protocol.views import GpuView, RefreshView, RunningJobView, Snapshot, WorkerView

MARKS = {
    "starting": ("◔", "blue"),
    "idle": ("○", "green"),
    "busy": ("●", "cyan"),
    "ending": ("◑", "magenta"),
    "releasing": ("◌", "magenta"),
    "backoff": ("↻", "yellow"),
    "broken": ("✖", "bold red"),
    "held": ("■", "bold red"),
    "lost": ("✖", "bold red"),
    "parked": ("·", "dim"),
}
"""Symbol and style of each slot state."""


def gpus(snapshot: Snapshot, selected: str | None) -> Section | None:
    """Build the section of the GPUs; None on a machine without."""
    views = snapshot.gpus
    if not views:
        return None
    focus = next((n for n, gpu in enumerate(views) if selected in gpu.slots), 0) if selected else 0
    pretend = all(gpu.simulated for gpu in views)

    def draw(rows: int, width: int) -> Drawn:
        shown, where = window(len(views), rows - 1, focus)
        titles, lines = table(_gpu_columns(views), views[shown], width)
        return Drawn([titles, *lines], where)

    size = 2 + len(views)
    title = "GPUs · simulated, not real" if pretend else "GPUs"
    return Section(Rank.GPUS, title, 3, min(size, 8), size, draw)


def _gpu_columns(views: Sequence[GpuView]) -> list[Column[GpuView]]:
    mixed = len({gpu.simulated for gpu in views}) > 1
    longest = max(len(_gpu_name(gpu, mixed)) for gpu in views)
    slots = max((len(", ".join(gpu.slots)) for gpu in views), default=5)
    columns: list[Column[GpuView]] = [
        Column("#", lambda gpu: Text(str(gpu.index), "bold"), 2, 2, align="right"),
        Column("name", lambda gpu: Text(_gpu_name(gpu, mixed)), min(longest, 8), min(longest, 40), 2),
        Column("memory", _gpu_memory_bar, 8, 48, 3),
        Column("", lambda gpu: Text(_gpu_memory(gpu)), 14, 14, align="right"),
    ]
    if any(gpu.utilization is not None for gpu in views):  # simulated and some real GPUs do not report it
        columns.append(Column("load", _gpu_load_bar, 6, 32, 5))
        columns.append(Column("", lambda gpu: _figure(gpu.utilization, "%"), 4, 4, 1, "right"))
    if any(gpu.temperature_c is not None for gpu in views):
        columns.append(Column("temp", lambda gpu: _figure(gpu.temperature_c, "°C"), 5, 5, 6, "right"))
    if any(gpu.power_w is not None for gpu in views):
        columns.append(Column("power", lambda gpu: _figure(gpu.power_w, " W"), 5, 5, 7, "right"))
    columns.append(Column("slots", lambda gpu: Text(", ".join(gpu.slots) or "-"), 5, min(max(slots, 5), 24), 1))
    columns.append(Column("others", _gpu_others, 12, 40, 4))
    return columns


def _gpu_name(gpu: GpuView, mixed: bool) -> str:
    name = harmless(gpu.name).removeprefix("NVIDIA ")
    return f"{name} (simulated)" if mixed and gpu.simulated else name


def _gpu_memory_bar(gpu: GpuView) -> Cell:
    if gpu.lost:
        return Span(Text(f"✖ lost{_because(gpu.error)}", "bold red"))
    if gpu.error is not None:
        return Span(Text(f"NVML cannot read it{_because(gpu.error)}", "yellow"))
    if gpu.memory_used_mib is None or not gpu.memory_total_mib:
        return lambda width: bar(None, width)
    share = gpu.memory_used_mib / gpu.memory_total_mib
    return lambda width: bar(share, width, level(100 * share))


def _because(error: str | None) -> str:
    return f": {harmless(error)}" if error else ""


def _gpu_memory(gpu: GpuView) -> str:
    if gpu.memory_used_mib is None or gpu.memory_total_mib is None:
        return "-"
    used = gpu.memory_used_mib / 1024
    return f"{used:.{2 if used < 1 else 1}f}/{gpu.memory_total_mib / 1024:.1f} GiB"


def _gpu_load_bar(gpu: GpuView) -> Cell:
    share = None if gpu.utilization is None else gpu.utilization / 100
    return lambda width: bar(share, width, "green")  # unlike full memory, a busy GPU is no warning


def _gpu_others(gpu: GpuView) -> Cell:
    if gpu.processes is None:
        return Text("?", "dim")
    unknown = [process for process in gpu.processes if process.slot is None]
    if not unknown:
        return Text("-", "dim")
    known = [process.memory_mib for process in unknown if process.memory_mib is not None]
    total = f"{mib(sum(known))}{'+' if len(known) < len(unknown) else ''}" if known else "?"
    brief = f"{len(unknown)} · {total}"
    first = max(unknown, key=lambda process: process.memory_mib or 0)
    name = first.name or ("process" if first.visible else "unknown")
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    named = f"{harmless(name).rpartition('/')[2]} ({first.pid}){more} · {total}"
    return lambda width: Text(named if len(named) <= width else brief, "yellow")


def _figure(value: float | None, unit: str) -> Text:
    return Text("-", "dim") if value is None else Text(f"{value:.0f}{unit}")


def slots(snapshot: Snapshot, selected: str | None) -> Section:
    """Build the section of the slots, with details of the selected one, else of the latest refresh."""
    views = snapshot.workers
    focus = next((n for n, view in enumerate(views) if view.slot == selected), 0)
    details = _details(snapshot, selected)

    def draw(rows: int, width: int) -> Drawn:
        if not views:
            return Drawn([Text("no slots", "dim")])
        room = max(rows - 1 - len(details), min(rows - 1, 3))
        shown, where = window(len(views), room, focus)
        titles, lines = table(_slot_columns(snapshot, selected), views[shown], width)
        return Drawn([titles, *lines, *details][:rows], where or _states(views))

    size = 2 + len(views) + len(details)
    return Section(Rank.SLOTS, "slots", 3, min(size, 10 + len(details)), size, draw)


def _states(views: Sequence[WorkerView]) -> str:
    states = Counter(view.state for view in views)
    return " · ".join(f"{states[state]} {state}" for state in MARKS if state in states)


def _slot_columns(snapshot: Snapshot, selected: str | None) -> list[Column[WorkerView]]:
    views = snapshot.workers
    jobs = {job.id: job for job in snapshot.running}

    def name(view: WorkerView) -> Cell:
        return Text(f"▸ {view.slot}", "bold") if view.slot == selected else Text(f"  {view.slot}")

    slot = min(max((len(view.slot) for view in views), default=4) + 2, 16)
    columns: list[Column[WorkerView]] = [
        Column("  slot", name, slot, slot),
        Column("state", _slot_state, 11, 11),
        Column("pid", lambda view: Text(str(view.pid or "-")), 7, 7, 7, "right"),
        Column("gen", lambda view: Text(str(view.generation)), 4, 4, 8, "right"),
        Column("job", lambda view: _slot_job(view, snapshot.at, jobs), 12, 44),
        Column("progress", lambda view: _slot_progress(view, jobs), 12, 28, 1),
        Column("jobs", lambda view: Text(f"{view.jobs:,}"), 5, 7, 3, "right"),
        Column("refreshes", lambda view: Text(f"{view.refreshes:,}"), 9, 9, 5, "right"),
        Column("restarts", _slot_restarts, 8, 8, 4, "right"),
    ]
    if any(view.gpu_memory_mib is not None for view in views):
        columns.append(Column("GPU MiB", _slot_memory, 7, 7, 6, "right"))
    columns.append(Column("last refresh", _slot_refreshes(views), 19, 46, 2))
    return columns


def _slot_state(view: WorkerView) -> Cell:
    mark, style = MARKS.get(view.state, ("?", "default"))
    return Text(f"{mark} {view.state}", style)


def _slot_job(view: WorkerView, now: int, jobs: dict[str, RunningJobView]) -> Cell:
    if not view.running:
        if view.reason is None:
            return Text("-", "dim")
        return Span(Text(harmless(view.reason), MARKS.get(view.state, ("", ""))[1]))
    first = view.running[0]
    ran = duration(max(now - jobs[first].started_at, 0)) if first in jobs else ""
    more = f"{len(view.running)} jobs: " if len(view.running) > 1 else ""

    def draw(width: int) -> Text:
        text = Text(crop(more + harmless(first), width if width < 24 else width - len(ran) - 2))
        return text if width < 24 else text.append(f"  {ran}", "dim")

    return draw


def _slot_progress(view: WorkerView, jobs: dict[str, RunningJobView]) -> Cell:
    job = jobs.get(view.running[0]) if view.running else None
    return Text() if job is None else progress.shown(job.progress)


def _slot_restarts(view: WorkerView) -> Cell:
    return Text(f"{view.restarts:,}", "yellow" if view.restarts else "")


def _slot_memory(view: WorkerView) -> Cell:
    return Text("-" if view.gpu_memory_mib is None else f"{view.gpu_memory_mib:,}")


def _slot_refreshes(views: Sequence[WorkerView]) -> Callable[[WorkerView], Cell]:
    """Return a cell function for the latest refresh: all ``views`` use the longest form that fits for each of them."""
    forms = [_refresh_forms(view.last_refresh) for view in views if view.last_refresh is not None]

    def cell(view: WorkerView) -> Cell:
        done = view.last_refresh
        if done is None:
            return Text("-", "dim")
        mine, style = _refresh_forms(done), "" if done.verified else "yellow"

        def draw(width: int) -> Text:
            fitting = (n for n in range(len(mine)) if all(len(form[n]) <= width for form in forms))
            return Text(mine[next(fitting, -1)], style)

        return draw

    return cell


def _refresh_forms(done: RefreshView) -> list[str]:
    """Return the texts for a refresh, from longest to shortest."""
    freed = "unverified" if not done.verified else "" if done.freed_mib is None else f"freed {mib(done.freed_mib)}"
    total, tail = duration(done.total_ms), f" · {freed}" if freed else ""
    steps = f"{total} = {_steps(done, named=False)}{tail}"
    return [
        f"refresh {steps}",
        steps,
        f"refresh {total}{tail}",
        f"{total}{tail}",
        f"{total}{tail.replace('freed ', '')}",
    ]


def _steps(done: RefreshView, named: bool = True) -> str:
    steps = {"end": done.end_ms, "release": done.release_ms, "start": done.start_ms}
    took = [duration(step) for step in steps.values()]
    if all(text.endswith(" ms") for text in took):  # one unit for all
        took[:-1] = [text.removesuffix(" ms") for text in took[:-1]]
    return " + ".join(f"{name} {text}" if named else text for name, text in zip(steps, took, strict=True))


def _details(snapshot: Snapshot, selected: str | None) -> list[Text]:
    view = next((view for view in snapshot.workers if view.slot == selected), None)
    lines = []
    if view is None:
        refreshed = [view for view in snapshot.workers if view.last_refresh is not None]
        view = max(refreshed, key=lambda view: view.last_refresh.at if view.last_refresh else 0, default=None)
        if view is None:
            return []
    else:
        held = "" if view.gpu_memory_mib is None else f" · holds {view.gpu_memory_mib:,} MiB"
        words = f"pid {view.pid or '-'} · {view.jobs:,} jobs · {view.refreshes:,} refreshes · {view.restarts:,} restarts{held}"
        lines.append(Text.assemble((f"▸ {view.id}", "bold"), f" · {words}"))
        if view.reason is not None:
            return [*lines, Text(f"  {harmless(view.reason)}", "dim" if view.state == "parked" else "yellow")]
    done = view.last_refresh
    if done is None:
        return [*lines, Text("  not refreshed yet", "dim")]
    when = f"  {view.slot} refreshed {clock(done.at)} ({harmless(done.cause)}): "
    return [*lines, Text.assemble((when, "dim"), _steps(done))]
