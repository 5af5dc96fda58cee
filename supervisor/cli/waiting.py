"""Waits for the end of a job, and says on a terminal how far it is; a client's process."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from supervisor.client.client import Client, JobView
from supervisor.job import JobStatus

if TYPE_CHECKING:
    from rich.text import Text

LOOK_S = 1.0
"""How often a person sees progress."""

_BAR_CELLS = 24


def until_ended(client: Client, job: str) -> JobView:
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
