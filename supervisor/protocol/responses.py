"""The JSON responses of the API, made from jobs and snapshots; in the supervisor.

Outputs, chunks and progress are never parsed here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import UNSET

from supervisor.job import Job, JobStatus, delay_ms, execution_ms
from supervisor.protocol import answers
from supervisor.protocol.views import Snapshot, WorkerCounts, WorkerView
from supervisor.protocol.wording import error_of

encode = msgspec.json.Encoder().encode

#: How ``workers`` of `/health` counts each slot state, in RunPod's terms: ``idle`` and ``running`` workers are ``ready``,
#: ``initializing`` ones soon will be, ``throttled`` ones wait, ``unhealthy`` ones need attention. A slot that is scaled down is
#: ``idle`` but not ``ready``, like RunPod's workers that are scaled down (docs.runpod.io, worker states).
COUNTED_AS: dict[str, tuple[str, ...]] = {
    "idle": ("idle", "ready"),
    "busy": ("running", "ready"),
    "starting": ("initializing",),
    "ending": ("initializing",),
    "releasing": ("initializing",),
    "backoff": ("unhealthy",),
    "parked": ("throttled",),
    "broken": ("unhealthy",),
    "held": ("unhealthy",),
    "lost": ("unhealthy",),
}


def health(snapshot: Snapshot) -> bytes:
    """Encode the body of `/health`."""
    return encode(answers.Health(snapshot.jobs, count_workers(snapshot.workers)))


def count_workers(workers: Iterable[WorkerView]) -> WorkerCounts:
    """Count workers in RunPod's six states; a state missing from ``COUNTED_AS`` is ``unhealthy``."""
    counts = dict.fromkeys(WorkerCounts.__struct_fields__, 0)
    for worker in workers:
        spare = worker.spare and worker.state == "parked"
        for name in ("idle",) if spare else COUNTED_AS.get(worker.state, ("unhealthy",)):
            counts[name] += 1
    return WorkerCounts(**counts)


def status_body(job: Job, progress: bytes | None = None, now_ms: int | None = None) -> bytes:
    """Encode the status of ``job`` for `/status`, `/runsync` and webhooks. The other parameters are those of ``status``."""
    return encode(status(job, progress, now_ms))


def status(job: Job, progress: bytes | None = None, now_ms: int | None = None) -> answers.JobAnswer:
    """Make the status of ``job``.

    ``progress`` is the newest progress (JSON), shown as ``output`` while the job runs. ``now_ms``: milliseconds since 1970.
    ``workerId`` is a string in every final status, as RunPod's clients require, and empty for a job that never started.
    """
    terminal = job.status.terminal
    output = job.output if terminal else progress if job.status is JobStatus.IN_PROGRESS else None
    return answers.JobAnswer(
        id=job.id,
        status=job.status,
        delay_time=delay_ms(job, int(time.time() * 1000) if now_ms is None else now_ms),
        execution_time=execution_ms(job) if terminal else None,
        worker_id=job.worker_id or "" if terminal else job.worker_id,
        output=UNSET if output is None else msgspec.Raw(output),
        error=error_of(job),
        retries=job.retries,
    )


def accepted_body(job: Job) -> bytes:
    """Encode the response of `/run`: the final status if the job had ended before, else IN_QUEUE, even if it has just started."""
    return encode(answers.Accepted(job.id, job.status if job.status.terminal else JobStatus.IN_QUEUE))


def stream_body(job: Job, chunks: Sequence[bytes]) -> bytes:
    """Join the JSON response of `/stream`; each of ``chunks`` is JSON."""
    items = b"".join([stream_item(chunk, first=at == 0) for at, chunk in enumerate(chunks)])
    return b"%b%b]}" % (stream_head(job), items)


def stream_head(job: Job) -> bytes:
    """Return the start of a `/stream` response that is sent in parts; ``]}`` ends it."""
    return b'{"status":"%b","stream":[' % job.status.value.encode()


def stream_item(chunk: bytes, *, first: bool) -> bytes:
    """Return one chunk of a `/stream` response."""
    return (b'{"output":%b}' if first else b',{"output":%b}') % chunk


def requests_body(jobs: Iterable[Job], following: str | None) -> bytes:
    """Encode the response of `/requests`; ``following`` is the ``after`` of the next page."""
    return encode(answers.Requests(tuple(map(status, jobs)), following))
