"""What a start finds in the store: jobs that ran when the last supervisor ended. Decided in the first turn. In the supervisor."""

from __future__ import annotations

from supervisor.config.settings import Settings
from supervisor.engine.lifecycle import Lifecycle
from supervisor.engine.turn import Turn
from supervisor.job import HOST_KILL_STARTS, Job, JobStatus, Outcome
from supervisor.store.store import Store


def recover(turn: Turn, store: Store, settings: Settings, lifecycle: Lifecycle) -> None:
    """Have the jobs that ran run again, up to ``HOST_KILL_STARTS`` starts, or fail."""
    for job in store.running():
        why = _why_not_again(job, settings)
        if why is None:
            lifecycle.requeue(turn, job, charged=True)
        else:
            lifecycle.end(turn, job, Outcome(JobStatus.FAILED, error=why))


def _why_not_again(job: Job, settings: Settings) -> str | None:
    if settings.on_restart == "fail":
        return "the supervisor was killed while the job ran (--on-restart fail)"
    if job.streamed and not settings.requeue_streams:
        return "the supervisor was killed after chunks of the job were handed out (--requeue-streams runs it again)"
    if job.attempts >= HOST_KILL_STARTS:
        return f"the supervisor was killed while the job ran, {job.attempts} times"
    return None
