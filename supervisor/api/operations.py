"""The operations of the API, a function each over the engine's public face; in the supervisor.

Their docstrings are read by clients: the first line and the rest are summary and description in `/openapi.json` and `/docs`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from supervisor.api import events
from supervisor.api.call import Call, Reply, clamped, index
from supervisor.api.metrics import CONTENT_TYPE, page_of
from supervisor.api.openai import forward
from supervisor.api.routes import EVENTS, HTML, IDEMPOTENCY_KEY, JOBS, JSON, MACHINE, SERVER, TEXT, Field, Route, route
from supervisor.errors import RequestError
from supervisor.job import JobStatus
from supervisor.protocol import answers, responses
from supervisor.protocol.answers import Accepted, SlotOrder
from supervisor.protocol.requests import NewJob
from supervisor.protocol.sse import packed
from supervisor.protocol.views import GpuView, Snapshot, Stats, WorkerView

if TYPE_CHECKING:
    from supervisor.engine.engine import Engine
    from supervisor.engine.streams import ChunkLease, Chunks
    from supervisor.job import Job

_TEXT = b"text/plain; charset=utf-8"
_FLAGS = {"0": False, "false": False, "1": True, "true": True}

_GET, _READ, _PROBE, _POST = ("GET",), ("GET", "POST"), ("GET", "HEAD"), ("POST",)

#: Default, least and most of ``wait``, in milliseconds.
_JOB_WAIT_MS = (90_000, 1_000, 300_000)
_STREAM_WAIT_MS = (5_000, 0, 300_000)

#: Default, least and most of ``limit`` in `/requests`.
_LIMITS = (100, 1, 1_000)


def _number(name: str, limits: tuple[int, int, int], text: str) -> Field:
    default, least, most = limits
    return Field(name, {"type": "integer", "default": default}, f"{text}: {least} to {most}.")


_FROM = {"type": "integer", "minimum": 0}
_JOB_WAIT = _number("wait", _JOB_WAIT_MS, "How many milliseconds to wait for its end")
_STREAM_WAIT = _number("wait", _STREAM_WAIT_MS, "How many milliseconds to wait for the first chunk")
_LIMIT = _number("limit", _LIMITS, "How many at most")
_AFTER = Field("after", _FROM, "Number of the first chunk wanted, from 0 on.")
_PAGE_AFTER = Field("after", {"type": "string"}, "The `next` of the page before, or a job's id: older ones than that.")
_STATUS = Field("status", {"$ref": "#/components/schemas/JobStatus"}, "Only jobs in this state.")
_FOLLOW = Field("follow", {"type": "string", "enum": list(_FLAGS), "default": "0"}, "Whether to go on as it prints.")
_LAST_EVENT = Field("Last-Event-ID", _FROM, "The `id` of the last event seen: resume behind it.", "header")


@route(_POST, "/run", JOBS, {JSON: Accepted}, fields=(IDEMPOTENCY_KEY,), refusals=(429,), body=NewJob)
async def run(call: Call) -> Reply:
    """Submit a job.

    Answers at once. What was answered is on disk: the job survives the server.
    """
    job = await call.engine.submit(await call.job_request())
    return Reply(responses.accepted_body(job))


@route(_POST, "/runsync", JOBS, {JSON: answers.Job}, fields=(_JOB_WAIT, IDEMPOTENCY_KEY), refusals=(429,), body=NewJob)
async def runsync(call: Call) -> Reply:
    """Submit a job and wait for its end.

    Answers with the job's status when it has ended, or after `wait` as it is then. The job goes on if the client leaves.
    """
    wait_s = call.wait_s(*_JOB_WAIT_MS)
    job = await call.engine.submit(await call.job_request())
    if job.status.terminal:
        return _status(call, job)
    waited = await call.wait(call.engine.wait(job.id, wait_s))
    return _status(call, waited or call.engine.job(job.id) or job)


@route(_READ, "/status/{id}", JOBS, {JSON: answers.Job})
async def status(call: Call) -> Reply:
    """The status of a job.

    `output` is the newest progress while the job runs, and what the handler returned once it has ended.
    """
    return _status(call, _known(call, call.engine.job(call.param)))


@route(_READ, "/status-sync/{id}", JOBS, {JSON: answers.Job}, fields=(_JOB_WAIT,))
async def status_sync(call: Call) -> Reply:
    """Wait for the end of a job.

    As `/status`, once the job has ended or after `wait`.
    """
    waited = await call.wait(call.engine.wait(call.param, call.wait_s(*_JOB_WAIT_MS)))
    return _status(call, _known(call, waited or call.engine.job(call.param)))


@route(_READ, "/stream/{id}", JOBS, {JSON: answers.Stream, EVENTS: None}, fields=(_STREAM_WAIT, _AFTER, _LAST_EVENT))
async def stream(call: Call) -> Reply:
    """The chunks of a job, each handed out once, or read from any place.

    As JSON: the chunks that no other answer has handed out, after waiting for the first. An answer that could not be sent uses
    up none. When the status is final and the list is empty, that was all.

    With `after`: those from that number on, which uses up none. With `Accept: text/event-stream`: all of them as they come, each
    an event with its number as `id` and `{"output": …}` as data; then an event `end` with `{"status": …}`.
    """
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


@route(_GET, "/logs/{id}", JOBS, {TEXT: str, EVENTS: None}, fields=(_FOLLOW, _LAST_EVENT))
async def logs(call: Call) -> Reply:
    """What a job printed.

    Complete once the job has ended. With `follow=1`: server-sent events as it prints, resumable by their `id`, then an event
    `end` with `{"status": …}`.
    """
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


@route(_POST, "/cancel/{id}", JOBS, {JSON: Accepted})
async def cancel(call: Call) -> Reply:
    """Cancel a job.

    A queued job never starts; a running one is stopped, if need be with its worker. One that has ended keeps its state, which is
    answered.
    """
    job = _known(call, await call.engine.cancel(call.param))
    return _json(Accepted(job.id, job.status))


@route(_POST, "/retry/{id}", JOBS, {JSON: Accepted}, refusals=(409, 429))
async def retry(call: Call) -> Reply:
    """Queue a job that failed or timed out once more.

    Only one that is `FAILED` or `TIMED_OUT`: under the same id, its old output gone.
    """
    return Reply(responses.accepted_body(_known(call, await call.engine.retry(call.param))))


@route(_POST, "/purge-queue", JOBS, {JSON: answers.Purged})
async def purge_queue(call: Call) -> Reply:
    """Cancel all queued jobs.

    Jobs that run go on. Those removed are `CANCELLED`.
    """
    return _json(answers.Purged(await call.engine.purge()))


@route(_GET, "/requests", JOBS, {JSON: answers.Requests}, fields=(_STATUS, _LIMIT, _PAGE_AFTER), refusals=(404,))
async def requests(call: Call) -> Reply:
    """The jobs, newest first.

    Without input and output, a page at a time. An empty field counts as absent.
    """
    status = call.field("status") or None
    if status is not None and status not in JobStatus.__members__:
        raise RequestError(400, f"status: no {status[:40]!r}; there are: {', '.join(JobStatus.__members__)}")
    limit = clamped("limit", call.field("limit") or str(_LIMITS[0]), *_LIMITS[1:])
    page = call.engine.requests(status and JobStatus(status), limit, call.field("after") or None)
    return Reply(responses.requests_body(page.jobs, page.next))


@route(_PROBE, "/health", MACHINE, {JSON: answers.Health})
async def health(call: Call) -> Reply:
    """Jobs and workers, counted.

    The counts of RunPod's endpoints. `failed` counts jobs that timed out too; `retried` those that went back to the queue.
    `idle` counts spare slots too, `ready` does not.
    """
    return Reply(responses.health(call.engine.snapshot()))


@route(_GET, "/workers", MACHINE, {JSON: tuple[WorkerView, ...]})
async def workers(call: Call) -> Reply:
    """The slots and the workers in them.

    A slot is the place on the GPUs that one worker after another occupies; `generation` counts them. One that is `parked` and
    `spare` starts when jobs wait; any other that is `parked` was paused.
    """
    return _json(call.engine.snapshot().workers)


@route(_POST, "/workers/{slot}/refresh", MACHINE, {JSON: SlotOrder}, refusals=(409,))
async def refresh_worker(call: Call) -> Reply:
    """Refresh the worker of a slot.

    After the jobs that it runs, its worker is ended, its GPU memory is seen to be free, and a fresh one is started. Overrides a
    slot's `held`, `broken` and `backoff`.
    """
    await call.engine.slots.refresh(call.param)
    return _json(SlotOrder(call.param, "refreshing"))


@route(_POST, "/workers/{slot}/pause", MACHINE, {JSON: SlotOrder}, refusals=(409,))
async def pause_slot(call: Call) -> Reply:
    """Take a slot out of service.

    After the jobs that its worker runs; the GPU is free then.
    """
    await call.engine.slots.pause(call.param)
    return _json(SlotOrder(call.param, "paused"))


@route(_POST, "/workers/{slot}/resume", MACHINE, {JSON: SlotOrder}, refusals=(409,))
async def resume_slot(call: Call) -> Reply:
    """Put a paused slot back into service.

    Starts a worker in it; while `--max-workers` are in service, it becomes `spare`.
    """
    await call.engine.slots.resume(call.param)
    return _json(SlotOrder(call.param, "resumed"))


@route(_GET, "/gpus", MACHINE, {JSON: tuple[GpuView, ...]})
async def gpus(call: Call) -> Reply:
    """The GPUs in use, as NVML shows them.

    With the processes on them, ours and others', where NVML may show them.
    """
    return _json(call.engine.snapshot().gpus)


@route(_GET, "/stats", MACHINE, {JSON: Stats})
async def stats(call: Call) -> Reply:
    """Rates and percentiles.

    Rates and percentiles (milliseconds) are those of the last minute.
    """
    return _json(call.engine.snapshot().stats)


@route(_GET, "/snapshot", MACHINE, {JSON: Snapshot})
async def snapshot(call: Call) -> Reply:
    """Everything that a screen shows.

    What `supervise top` draws, all of it at one moment. May change with the version.
    """
    return _json(call.engine.snapshot())


@route(_PROBE, "/livez", SERVER, {JSON: answers.Ok}, open=True, root_only=True)
async def livez(call: Call) -> Reply:  # noqa: ARG001 - every operation takes the call
    """Whether the supervisor lives.

    No key is asked for.
    """
    return _json(answers.Ok())


@route(_PROBE, "/readyz", SERVER, {JSON: answers.Ok}, open=True, root_only=True)
async def readyz(call: Call) -> Reply:
    """Whether a worker is ready.

    A job that is sent now starts soon. 503 until a first worker is ready, and while the server drains. No key is asked for.
    """
    if call.engine.ready:
        return _json(answers.Ok())
    raise RequestError(503, "draining" if call.engine.draining else "no worker is ready yet", retry_after=1)


@route(_PROBE, "/metrics", SERVER, {TEXT: str}, root_only=True)
async def metrics(call: Call) -> Reply:
    """Metrics for Prometheus.

    Prometheus' text format. Let it send the key as `authorization: {credentials: KEY}`.
    """
    return Reply(page_of(call.engine, call.app.deliveries), content_type=CONTENT_TYPE)


@route(_PROBE, "/openapi.json", SERVER, {JSON: dict[str, Any]}, root_only=True)
async def openapi(call: Call) -> Reply:
    """This API, described for programs.

    OpenAPI 3.1.
    """
    return _json(call.app.document)


@route(_PROBE, "/docs", SERVER, {HTML: str}, root_only=True)
async def docs(call: Call) -> Reply:
    """This API, described for people.

    One page, complete in itself.
    """
    return call.app.docs


def _known(call: Call, job: Job | None) -> Job:
    if job is None:
        raise RequestError(404, f"no job {call.param[:128]!r}: never submitted here, or deleted after --retention")
    return job


def _status(call: Call, job: Job) -> Reply:
    progress = None if job.status.terminal else call.engine.progress(job.id)
    return Reply(responses.status_body(job, progress))


def _put_back(lease: ChunkLease | None) -> None:
    if lease is not None:
        lease.release()


def _settle(lease: ChunkLease) -> Callable[[bool], None]:
    return lambda delivered: lease.confirm() if delivered else lease.release()


def _json(value: Any) -> Reply:
    return Reply(responses.encode(value))


ROUTES: tuple[Route, ...] = (
    *(run, runsync, status, status_sync, stream, cancel, retry, purge_queue, requests, logs),
    *(health, workers, refresh_worker, pause_slot, resume_slot, gpus, stats, snapshot, forward.openai),
    *(livez, readyz, metrics, openapi, docs),
)
