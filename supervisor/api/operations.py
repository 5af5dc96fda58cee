"""The operations of the API, a function each over the engine's public face, and the table that names them; in the supervisor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from supervisor.api import shapes
from supervisor.api.call import Call, Reply
from supervisor.api.routes import Route
from supervisor.errors import RequestError

if TYPE_CHECKING:
    from supervisor.job import Job
    from supervisor.streams import ChunkLease

#: Default, least and most of ``wait``, in milliseconds.
_JOB_WAIT_MS = (90_000, 1_000, 300_000)
_STREAM_WAIT_MS = (5_000, 0, 300_000)

_encode = msgspec.json.Encoder().encode


async def run(call: Call) -> Reply:
    """POST /run."""
    job = await call.engine.submit(await call.job_request())
    return Reply(shapes.accepted_body(job))


async def runsync(call: Call) -> Reply:
    """POST /runsync: the client may leave, the job goes on."""
    wait_s = call.wait_s(*_JOB_WAIT_MS)
    job = await call.engine.submit(await call.job_request())
    if job.status.terminal:
        return _status(call, job)
    waited = await call.wait(call.engine.wait(job.id, wait_s))
    return _status(call, waited or call.engine.job(job.id) or job)


async def status(call: Call) -> Reply:
    """GET, POST /status/{id}."""
    return _status(call, _known(call, call.engine.job(call.param)))


async def status_sync(call: Call) -> Reply:
    """GET, POST /status-sync/{id}."""
    waited = await call.wait(call.engine.wait(call.param, call.wait_s(*_JOB_WAIT_MS)))
    return _status(call, _known(call, waited or call.engine.job(call.param)))


async def stream(call: Call) -> Reply:
    """GET, POST /stream/{id}: an answer that does not reach the client uses up no chunks."""
    wait_s = call.wait_s(*_STREAM_WAIT_MS)
    lease = await call.wait_while_connected(call.engine.take_chunks(call.param, wait_s), _put_back)
    if lease is None:
        return Reply(shapes.stream_body(_known(call, call.engine.job(call.param)), ()))
    return Reply(shapes.stream_body(lease.job, lease.chunks), sent=_settle(lease))


async def cancel(call: Call) -> Reply:
    """POST /cancel/{id}."""
    return Reply(shapes.state_body(_known(call, await call.engine.cancel(call.param))))


async def health(call: Call) -> Reply:
    """GET /health."""
    return Reply(shapes.health(call.engine.snapshot()))


async def workers(call: Call) -> Reply:
    """GET /workers."""
    return Reply(_encode(call.engine.snapshot().workers))


async def gpus(call: Call) -> Reply:
    """GET /gpus."""
    return Reply(_encode(call.engine.snapshot().gpus))


async def snapshot(call: Call) -> Reply:
    """GET /snapshot: what a screen shows."""
    return Reply(_encode(call.engine.snapshot()))


async def refresh(call: Call) -> Reply:
    """POST /workers/{slot}/refresh: answers when it was accepted."""
    call.engine.refresh(call.param)
    return Reply(_encode({"slot": call.param, "status": "refreshing"}))


async def livez(call: Call) -> Reply:  # noqa: ARG001 - every operation takes the call
    """GET /livez: the loop turns, or this would not answer."""
    return Reply(b'{"status":"ok"}')


async def readyz(call: Call) -> Reply:
    """GET /readyz: whether a job sent now would start soon."""
    if call.engine.ready:
        return Reply(b'{"status":"ok"}')
    raise RequestError(503, "draining" if call.engine.draining else "no worker is ready yet", retry_after=1)


def _known(call: Call, job: Job | None) -> Job:
    if job is None:
        raise RequestError(404, f"no job {call.param[:128]!r}: never submitted here, or forgotten (--retention)")
    return job


def _status(call: Call, job: Job) -> Reply:
    progress = None if job.status.terminal else call.engine.progress(job.id)
    return Reply(shapes.status_body(job, progress))


def _put_back(lease: ChunkLease | None) -> None:
    if lease is not None:
        lease.release()


def _settle(lease: ChunkLease) -> Callable[[bool], None]:
    return lambda delivered: lease.confirm() if delivered else lease.release()


_GET, _READ, _PROBE, _POST = ("GET",), ("GET", "POST"), ("GET", "HEAD"), ("POST",)

ROUTES: tuple[Route, ...] = (
    Route(_POST, "/run", run, "Submit a job", body=True),
    Route(_POST, "/runsync", runsync, "Submit a job and wait for its end", body=True),
    Route(_READ, "/status/{id}", status, "The status of a job"),
    Route(_READ, "/status-sync/{id}", status_sync, "Wait for the end of a job"),
    Route(_READ, "/stream/{id}", stream, "The chunks of a job that were not handed out before"),
    Route(_POST, "/cancel/{id}", cancel, "Cancel a job"),
    Route(_PROBE, "/health", health, "Jobs and workers, counted"),
    Route(_GET, "/workers", workers, "The slots and the workers in them"),
    Route(_POST, "/workers/{slot}/refresh", refresh, "Refresh the worker of a slot"),
    Route(_GET, "/gpus", gpus, "The GPUs as NVML shows them"),
    Route(_GET, "/snapshot", snapshot, "Everything that a screen shows"),
    Route(_PROBE, "/livez", livez, "Whether the supervisor lives", open=True, root_only=True),
    Route(_PROBE, "/readyz", readyz, "Whether a worker is ready", open=True, root_only=True),
)
