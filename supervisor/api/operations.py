"""The operations of the API, a function each over the engine's public face, and the table that names them; in the supervisor."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

import msgspec

from supervisor.api import events
from supervisor.api.call import Call, Reply, clamped, index
from supervisor.api.openai import forward
from supervisor.api.routes import Route
from supervisor.errors import RequestError
from supervisor.job import JobStatus
from supervisor.protocol import responses
from supervisor.protocol.sse import packed

if TYPE_CHECKING:
    from supervisor.engine.engine import Engine
    from supervisor.engine.streams import ChunkLease, Chunks
    from supervisor.job import Job

#: Default, least and most of ``wait``, in milliseconds.
_JOB_WAIT_MS = (90_000, 1_000, 300_000)
_STREAM_WAIT_MS = (5_000, 0, 300_000)

#: Default, least and most of ``limit`` in `/requests`.
_PAGE, _MIN_PAGE, _MAX_PAGE = 100, 1, 1_000

_TEXT = b"text/plain; charset=utf-8"
_FLAGS = {"0": False, "false": False, "1": True, "true": True}

_encode = msgspec.json.Encoder().encode


async def run(call: Call) -> Reply:
    """POST /run."""
    job = await call.engine.submit(await call.job_request())
    return Reply(responses.accepted_body(job))


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
    """GET, POST /stream/{id}: what no other answer has handed out, or with ``after`` and as events any part of it."""
    after = call.field("after")
    if events.wanted(call.headers.get(b"accept", b"")):
        return _chunk_events(call, after)
    wait_s = call.wait_s(*_STREAM_WAIT_MS)
    return await (_untaken_chunks(call, wait_s) if after is None else _chunks_from(call, index("after", after), wait_s))


async def _untaken_chunks(call: Call, wait_s: float) -> Reply:
    """An answer that does not reach the client uses up no chunks."""
    lease = await call.wait_while_connected(call.engine.streams.take(call.param, wait_s), _put_back)
    if lease is None:
        return Reply(responses.stream_body(_known(call, call.engine.job(call.param)), ()))
    return _stream(call, lease.chunks, sent=_settle(lease))


async def _chunks_from(call: Call, start: int, wait_s: float) -> Reply:
    chunks = await call.wait(call.engine.streams.read(call.param, start, wait_s))
    if chunks is None:
        return Reply(responses.stream_body(_known(call, call.engine.job(call.param)), ()))
    return _stream(call, chunks)


def _stream(call: Call, chunks: Chunks, sent: Callable[[bool], None] | None = None) -> Reply:
    """The answer that begins with ``chunks`` and has those that follow, up to the newest of that moment."""
    if chunks.end >= chunks.job.chunks:
        return Reply(responses.stream_body(chunks.job, chunks.values), sent=sent)
    return Reply(parts=_long_stream(call.engine, chunks), sent=sent)


async def _long_stream(engine: Engine, chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """Many looks' chunks. What a job that is put back meanwhile has then is of another attempt, and none of this answer."""
    yield responses.stream_head(chunks.job)
    first = chunks.first
    while chunks.values:
        items = (
            responses.stream_item(chunk, first=at == first) for at, chunk in enumerate(chunks.values, chunks.first)
        )
        for part in packed(items):
            yield part
        chunks = engine.streams.following(chunks)
    yield b"]}"


def _chunk_events(call: Call, after: str | None) -> Reply:
    seen = call.headers.get(b"last-event-id")
    start = index("after", after) if after is not None else 0
    if seen:
        start = index("Last-Event-ID", seen.decode("latin-1")) + 1
    job = _known(call, call.engine.job(call.param))
    return events.reply(events.of_chunks(call.engine, job.id, start))


async def logs(call: Call) -> Reply:
    """GET /logs/{id}: what the job printed, or as events what it prints."""
    follow = call.field("follow") or "0"
    if follow not in _FLAGS:
        raise RequestError(400, f"follow: expected 1 or 0, got {follow[:40]!r}")
    if _FLAGS[follow]:
        start = index("Last-Event-ID", call.headers.get(b"last-event-id", b"").decode("latin-1") or "0")
        job = _known(call, call.engine.job(call.param))
        return events.reply(events.of_log(call.engine, job.id, start))
    log = call.engine.logs.read(call.param)
    text = log.text if log is not None else b""
    job = _known(call, log.job if log is not None else None)
    following = call.engine.logs.read(job.id, len(text))
    if following is None or not following.text:
        return Reply(text, headers=events.HEADERS, content_type=_TEXT)
    return Reply(parts=_long_log(call.engine, job.id, text), headers=events.HEADERS, content_type=_TEXT)


async def _long_log(engine: Engine, job_id: str, text: bytes) -> AsyncGenerator[bytes, None]:
    """``text``, and what the job printed behind it."""
    at = 0
    while text:
        yield text
        at += len(text)
        log = engine.logs.read(job_id, at)
        text = log.text if log is not None else b""


async def cancel(call: Call) -> Reply:
    """POST /cancel/{id}."""
    return Reply(responses.state_body(_known(call, await call.engine.cancel(call.param))))


async def retry(call: Call) -> Reply:
    """POST /retry/{id}."""
    return Reply(responses.accepted_body(_known(call, await call.engine.retry(call.param))))


async def purge_queue(call: Call) -> Reply:
    """POST /purge-queue."""
    return Reply(_encode({"removed": await call.engine.purge(), "status": "completed"}))


async def requests(call: Call) -> Reply:
    """GET /requests: an empty field counts as absent."""
    status = call.field("status") or None
    if status is not None and status not in JobStatus.__members__:
        raise RequestError(400, f"status: no {status[:40]!r}; there are: {', '.join(JobStatus.__members__)}")
    limit = clamped("limit", call.field("limit") or str(_PAGE), _MIN_PAGE, _MAX_PAGE)
    page = call.engine.requests(status and JobStatus(status), limit, call.field("after") or None)
    return Reply(responses.requests_body(page.jobs, page.next))


async def health(call: Call) -> Reply:
    """GET /health."""
    return Reply(responses.health(call.engine.snapshot()))


async def workers(call: Call) -> Reply:
    """GET /workers."""
    return Reply(_encode(call.engine.snapshot().workers))


async def gpus(call: Call) -> Reply:
    """GET /gpus."""
    return Reply(_encode(call.engine.snapshot().gpus))


async def stats(call: Call) -> Reply:
    """GET /stats."""
    return Reply(_encode(call.engine.snapshot().stats))


async def snapshot(call: Call) -> Reply:
    """GET /snapshot: what a screen shows."""
    return Reply(_encode(call.engine.snapshot()))


async def refresh(call: Call) -> Reply:
    """POST /workers/{slot}/refresh: answers when it was accepted."""
    await call.engine.slots.refresh(call.param)
    return Reply(_encode({"slot": call.param, "status": "refreshing"}))


async def pause(call: Call) -> Reply:
    """POST /workers/{slot}/pause: answers when it was accepted."""
    await call.engine.slots.pause(call.param)
    return Reply(_encode({"slot": call.param, "status": "paused"}))


async def resume(call: Call) -> Reply:
    """POST /workers/{slot}/resume: answers when it was accepted."""
    await call.engine.slots.resume(call.param)
    return Reply(_encode({"slot": call.param, "status": "resumed"}))


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
    return Reply(responses.status_body(job, progress))


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
    Route(_READ, "/stream/{id}", stream, "The chunks of a job, each handed out once, or read from any place"),
    Route(_POST, "/cancel/{id}", cancel, "Cancel a job"),
    Route(_POST, "/retry/{id}", retry, "Queue a job that failed or timed out once more"),
    Route(_POST, "/purge-queue", purge_queue, "Cancel all queued jobs"),
    Route(_GET, "/requests", requests, "The jobs, newest first"),
    Route(_GET, "/logs/{id}", logs, "What a job printed"),
    Route(_PROBE, "/health", health, "Jobs and workers, counted"),
    Route(_GET, "/workers", workers, "The slots and the workers in them"),
    Route(_POST, "/workers/{slot}/refresh", refresh, "Refresh the worker of a slot"),
    Route(_POST, "/workers/{slot}/pause", pause, "Take a slot out of service"),
    Route(_POST, "/workers/{slot}/resume", resume, "Put a paused slot back into service"),
    Route(_GET, "/gpus", gpus, "The GPUs as NVML shows them"),
    Route(_GET, "/stats", stats, "Rates and percentiles"),
    Route(_GET, "/snapshot", snapshot, "Everything that a screen shows"),
    Route(_READ, "/openai/v1/{route}", forward.forward, "OpenAI's API, as the handler serves it", body=True, rest=True),
    Route(_PROBE, "/livez", livez, "Whether the supervisor lives", open=True, root_only=True),
    Route(_PROBE, "/readyz", readyz, "Whether a worker is ready", open=True, root_only=True),
)
