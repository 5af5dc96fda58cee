"""`/openai/v1/…`: turns a request of OpenAI's API into a job, and the handler's result into the response; in the supervisor.

It is made for handlers that are proxies of a server with that API (vLLM, SGLang, llama.cpp, Infinity), as RunPod's public workers
are. For a stream they yield its text, cut anywhere, or one object or a list of them at a time; else one object, or its text.

When a client disconnects, its job is cancelled, as such servers abort unread requests: without the job's id, it could never fetch
the result. Exceptions: the client named the job itself (`Idempotency-Key`), or cancelling would cost the worker and its model,
which the next request needs: a running plain function or generator goes on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import msgspec

from supervisor.api import events, routes
from supervisor.api.call import JSON, Call, ClientDisconnected, Reply
from supervisor.api.openai import errors
from supervisor.engine.streams import Chunks
from supervisor.errors import RequestError
from supervisor.job import Job, JobRequest, JobStatus
from supervisor.protocol.requests import OpenAIRequest, openai_request
from supervisor.protocol.sse import event, packed

TEXT = b"text/plain; charset=utf-8"

EVENTS = b"text/event-stream; charset=utf-8"
"""Not ``events.CONTENT_TYPE``: a response of that type may end anywhere, since its client reconnects for the rest. This one's
does not, and must not take a stream that the server's stop cut short for the whole."""

PING = b": ping\n"
"""Without an empty line at its end, which would end the handler's own event, of which some lines may be sent already."""

ROUND_S = 3600.0
"""Seconds one wait for a job lasts. Their number is not limited: the job has its own limit, and so has the client."""

T = TypeVar("T")

_list = msgspec.json.Decoder(list[msgspec.Raw])
_text = msgspec.json.Decoder(str)
_any = msgspec.json.Decoder(msgspec.Raw)


@routes.route(
    ("GET", "POST"),
    "/openai/v1/{route}",
    routes.OPENAI,
    {routes.JSON: Any, routes.TEXT: str, routes.EVENTS: None},
    fields=(routes.IDEMPOTENCY_KEY,),
    refusals=(429,),
    body=OpenAIRequest,
    rest=True,
)
async def openai(call: Call) -> Reply:
    """Forward a request of OpenAI's API to the handler.

    The handler gets a job with the input `{"openai_route": "/v1/…", "openai_input": body}`, and its result is the response: one
    value, or with `stream` the text of its chunks as they come. Errors are OpenAI's, with the status that the handler's error
    implies. `x-request-id` is the job's id.
    """
    # Handlers compare the route, so the query is left out of it.
    body = await call.body()
    key = call.headers.get(b"idempotency-key")
    request, stream = openai_request(call.param, None if call.method == "GET" else body, key)
    pending = _PendingRequest(call, request)
    job = await call.engine.submit(request)
    return await (_stream(pending) if stream else _result(pending, job))


class _PendingRequest:
    """A request under way: the waiting client and its job."""

    __slots__ = ("_call", "_named", "job_id")

    def __init__(self, call: Call, request: JobRequest) -> None:
        self._call = call
        self._named = not request.generated
        self.job_id = request.id

    async def wait(self, timeout: float) -> Job:
        """Return the job when it has ended, or after ``timeout`` seconds."""
        return await self._wanted(self._call.engine.wait(self.job_id, timeout))

    async def read(self, start: int, timeout: float) -> Chunks:
        """Return the job's chunks from ``start`` on; none if it has ended or after ``timeout`` seconds."""
        return await self._wanted(self._call.engine.streams.read(self.job_id, start, timeout))

    async def following(self, start: int) -> Chunks | None:
        """Return the next chunks once the response has begun and its sender watches the client; None if the job was deleted."""
        return await self._call.engine.streams.read(self.job_id, start, events.PING_S)

    async def _wanted(self, work: Coroutine[Any, Any, T | None]) -> T:
        found = await self._call.wait_while_connected(work, lambda _: None)
        if found is not None:
            return found
        self.abandon()
        if self._call.is_disconnected():
            raise ClientDisconnected
        if self._call.engine.job(self.job_id) is None:
            raise RequestError(410, "the job was deleted before its result was read (--max-store)")
        raise RequestError(503, "the supervisor is shutting down", retry_after=5)

    def abandon(self) -> None:
        """Cancel the job, whose result no client will read, unless the client named it."""
        if not self._named:
            self._call.engine.abandon(self.job_id)


async def _result(pending: _PendingRequest, job: Job) -> Reply:
    """Return the handler's one result: JSON, or plain text if it is text that is no JSON."""
    while not job.status.terminal:
        job = await pending.wait(ROUND_S)
    if job.status is not JobStatus.COMPLETED:
        return errors.of_job(job).reply(job.id)
    values = await _values(pending, job)
    if not values:
        return errors.NO_RESULT.reply(job.id)
    body, content_type = _joined(values)
    failure = errors.found_in(body)
    if failure is not None:
        return failure.reply(job.id)
    return Reply(body, headers={errors.REQUEST_ID: job.id.encode()}, content_type=content_type)


async def _values(pending: _PendingRequest, job: Job) -> list[bytes]:
    """Return the values that a completed job yielded, or else returned; each is JSON."""
    if job.output is not None and (job.output != b"[]" or not job.chunks):
        return _items(job.output)
    values: list[bytes] = []
    while more := (await pending.read(len(values), ROUND_S)).values:
        values += more
    return values


def _items(output: bytes) -> list[bytes]:
    return [bytes(item) for item in _list.decode(output)] if output.startswith(b"[") else [output]


def _joined(values: list[bytes]) -> tuple[bytes, bytes]:
    """Join ``values`` into one body; return it and its content type."""
    if not all(value.startswith(b'"') for value in values):
        return (values[0] if len(values) == 1 else b"[%b]" % b",".join(values)), JSON
    text = "".join(map(_text.decode, values)).encode()
    return text, JSON if _is_json(text) else TEXT


def _is_json(text: bytes) -> bool:
    try:
        _any.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return text.lstrip()[:1] in (b"{", b"[")  # a number or a word may be plain text, such as a transcript


async def _stream(pending: _PendingRequest) -> Reply:
    """Stream server-sent events. Nothing is sent before the first chunk: until then an error has a status of its own."""
    chunks = await pending.read(0, ROUND_S)
    while not chunks.values and not chunks.job.status.terminal:
        chunks = await pending.read(0, ROUND_S)
    job = chunks.job
    if not chunks.values:
        if job.status is not JobStatus.COMPLETED:
            return errors.of_job(job).reply(job.id)
        # The handler does not stream: its whole result becomes the only event.
        chunks = Chunks(job, 0, [] if job.output is None else _items(job.output))
        if not chunks.values:
            return errors.NO_RESULT.reply(job.id)
    failure = errors.found_in(_first_event(chunks.values[0]))
    if failure is not None:
        return failure.reply(job.id)
    headers = {**events.HEADERS, errors.REQUEST_ID: job.id.encode()}
    return Reply(headers=headers, content_type=EVENTS, parts=_parts(pending, chunks))


def _first_event(chunk: bytes) -> bytes:
    """Return the data of the event that ``chunk`` begins with, if it is whole: proxies yield errors so, without their status."""
    if not chunk.startswith(b'"'):
        return chunk
    return _text.decode(chunk).partition("\n\n")[0].removeprefix("data:").strip().encode()


async def _parts(pending: _PendingRequest, chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """Yield the text of ``chunks`` and of all that follow; closed when the client disconnects."""
    text = _EventStream()
    first = chunks.job
    ended = False
    try:
        while True:
            for part in packed(map(text.add, chunks.values)):
                yield part
            job = chunks.job
            ended = job.status.terminal and (chunks.end >= job.chunks or not chunks.values)
            if ended:
                break
            following = await pending.following(chunks.end)
            if following is None or following.job.retries != first.retries:
                yield text.failed(errors.BROKEN_OFF)
                return
            if not following.values and not following.job.status.terminal:
                yield PING
            chunks = following
        completed = job.status is JobStatus.COMPLETED
        yield text.end() if completed else text.failed(errors.of_job(job))
    finally:
        if not ended:
            pending.abandon()


class _EventStream:
    """Joins chunks into a stream of events. An incomplete line is held back: nothing could follow it if the job failed."""

    def __init__(self) -> None:
        self._held = ""
        self._at_gap = True
        self._ours = False

    def add(self, chunk: bytes) -> bytes:
        """Return the bytes to send for ``chunk`` (JSON): text as it is, an object as an event, a list as its items."""
        if chunk.startswith(b'"'):
            return self._add_text(_text.decode(chunk))
        if chunk.startswith(b"["):
            return b"".join(map(self.add, _items(chunk)))
        failure = errors.found_in(chunk)
        self._ours = True
        return self._gap() + event(chunk if failure is None else failure.body)

    def failed(self, failure: errors.Failure) -> bytes:
        """Return the end of a stream that failed."""
        self._held = ""
        return self._gap() + event(failure.body)

    def end(self) -> bytes:
        """Return the end of a complete stream. A handler that yields text ends it itself, as its protocol demands."""
        return self._held.encode() + (b"data: [DONE]\n\n" if self._ours else b"")

    def _add_text(self, text: str) -> bytes:
        whole, newline, self._held = (self._held + text).rpartition("\n")
        lines = whole + newline
        if lines:
            self._at_gap = lines.replace("\r", "").endswith("\n\n")
            self._ours = False
        return lines.encode()

    def _gap(self) -> bytes:
        """Return the rest of the handler's text and the end of its event, which must precede an event of ours."""
        rest = self._held + "\n" if self._held else ""
        before = "" if self._at_gap and not rest else rest + "\n"
        self._held, self._at_gap = "", True
        return before.encode()
