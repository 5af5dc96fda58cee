"""Summaries of a store, for the program's start and end; in the supervisor process."""

from __future__ import annotations

from pathlib import Path

from supervisor.job import JobStatus
from supervisor.store.store import Counts


def shown(path: Path) -> str:
    """Return ``path`` for a message, relative to the current folder if it lies below that."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):  # OSError: that folder was removed
        return str(path)


def unfinished(counts: Counts) -> int:
    """Count the jobs that are still to be run."""
    return counts.jobs[JobStatus.IN_QUEUE] + counts.jobs[JobStatus.IN_PROGRESS]


def fields(counts: Counts) -> dict[str, int]:
    """Return the number of jobs ``queued``, ``interrupted`` (running when a supervisor was killed) and ``ended``."""
    jobs = counts.jobs
    return {
        "queued": jobs[JobStatus.IN_QUEUE],
        "interrupted": jobs[JobStatus.IN_PROGRESS],
        "ended": sum(number for status, number in jobs.items() if status.terminal),
    }


def at_start(path: Path, counts: Counts) -> str:
    """Describe the content of the store at ``path``, before any of its jobs runs."""
    queued, *others = (f"{number} {word}" for word, number in fields(counts).items())
    return f"store {shown(path)}: " + ", ".join([queued, *(other for other in others if not other.startswith("0 "))])


def at_end(path: Path, counts: Counts) -> str | None:
    """Describe the jobs that the next start will run; None if there are none."""
    number = unfinished(counts)
    return f"{number} job{'s stay' if number != 1 else ' stays'} queued in {shown(path)}" if number else None
