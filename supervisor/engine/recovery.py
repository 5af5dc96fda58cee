"""What a start finds in the store: jobs that ran when the last supervisor ended. Decided in the first turn. In the supervisor."""

from __future__ import annotations

from supervisor.cause import ChunksHandedOut, JobCause, SupervisorKilled
from supervisor.config.settings import Settings
from supervisor.engine.lifecycle import Lifecycle
from supervisor.engine.turn import Turn
from supervisor.job import HOST_KILL_STARTS, Job, JobStatus, Outcome
from supervisor.store.store import Store


def recover(turn: Turn, store: Store, settings: Settings, lifecycle: Lifecycle) -> None:
    """Have the jobs that ran run again, up to ``HOST_KILL_STARTS`` starts, or fail."""
    for job in store.running():
        cause = _why_not_again(job, settings)
        if cause is None:
            lifecycle.requeue(turn, job, charged=True)
        else:
            lifecycle.end(turn, job, Outcome(JobStatus.FAILED, cause=cause))


def _why_not_again(job: Job, settings: Settings) -> JobCause | None:
    if settings.on_restart == "fail":
        return SupervisorKilled()
    if job.streamed and not settings.requeue_streams:
        return ChunksHandedOut()
    return SupervisorKilled(job.attempts) if job.attempts >= HOST_KILL_STARTS else None
