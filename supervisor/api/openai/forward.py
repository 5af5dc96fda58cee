"""`/openai/v1/…`: a request of OpenAI's API becomes a job, and what the handler makes of it the answer; in the supervisor.

The handlers meant here are proxies in front of a server of that API (vLLM, SGLang, llama.cpp, Infinity), as RunPod's public
workers are. For a stream they yield its text, cut anywhere, or an object or a list of some at a time; else one object, or its
text.

A client that leaves has its job cancelled, as such servers abort what nobody reads: it could never ask for the result, since it
does not know the job's id. Except where it named the job itself (`Idempotency-Key`), or where that would cost the worker and the
model in it, which the next request needs: a plain function or generator that runs is let go on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import msgspec

from supervisor.api import events, routes
from supervisor.api.call import JSON, Call, ClientGone, Reply
from supervisor.api.openai import errors
from supervisor.engine.streams import Chunks
from supervisor.errors import RequestError
from supervisor.job import Job, JobRequest, JobStatus
from supervisor.protocol.requests import OpenAIRequest, openai_request
from supervisor.protocol.sse import event, packed

TEXT = b"text/plain; charset=utf-8"

EVENTS = b"text/event-stream; charset=utf-8"
"""Not ``events.CONTENT_TYPE``: an answer of that type may end anywhere, since its client comes back for the rest. This one's
does not, and must not take for the whole what the server's stop has cut short."""

PING = b": ping\n"
"""No empty line ends it, as that would end the handler's own event, of which some lines may be out already."""

ROUND_S = 3600.0
"""How long one look at a job waits. There is no limit on all of them: the job has its own, and so has the client."""

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
    """OpenAI's API, as the handler serves it.

    The handler gets a job with the input `{"openai_route": "/v1/…", "openai_input": body}`, and what it makes of it is the
    answer: the one result, or with `stream` the text of its chunks as they come. Errors are OpenAI's, with the status that the
    handler's error means. `x-request-id` is the job's id.
    """
    # The query is left out of the route, which handlers compare.
    body = await call.body()
    key = call.headers.get(b"idempotency-key")
    request, stream = openai_request(call.param, None if call.method == "GET" else body, key)
    asked = _Asked(call, request)
    job = await call.engine.submit(request)
    return await (_stream(asked) if stream else _result(asked, job))


class _Asked:
    """A request under way: the client that waits, and its job."""

    __slots__ = ("_call", "_named", "job_id")

    def __init__(self, call: Call, request: JobRequest) -> None:
        self._call = call
        self._named = not request.generated
        self.job_id = request.id

    async def wait(self, timeout: float) -> Job:
        """The job, ended or as it is after ``timeout`` seconds."""
        return await self._wanted(self._call.engine.wait(self.job_id, timeout))

    async def read(self, start: int, timeout: float) -> Chunks:
        """The job's chunks from ``start`` on, none if it has ended or after ``timeout`` seconds."""
        return await self._wanted(self._call.engine.streams.read(self.job_id, start, timeout))

    async def following(self, start: int) -> Chunks | None:
        """As ``read``, for an answer that has begun: who sends it sees to the client; ``None``: the job was forgotten."""
        return await self._call.engine.streams.read(self.job_id, start, events.PING_S)

    async def _wanted(self, work: Coroutine[Any, Any, T | None]) -> T:
        found = await self._call.wait_while_connected(work, _nothing)
        if found is not None:
            return found
        self.abandon()
        if self._call.has_left():
            raise ClientGone
        if self._call.engine.job(self.job_id) is None:
            raise RequestError(410, "the job was forgotten before its result was read (--max-store)")
        raise RequestError(503, "the supervisor is shutting down", retry_after=5)

    def abandon(self) -> None:
        """Nobody will read what comes of the job."""
        if not self._named:
            self._call.engine.abandon(self.job_id)


async def _result(asked: _Asked, job: Job) -> Reply:
    """The one result, as JSON; as plain text where it is text that is no JSON."""
    while not job.status.terminal:
        job = await asked.wait(ROUND_S)
    if job.status is not JobStatus.COMPLETED:
        return errors.of_job(job).reply(job.id)
    values = await _values(asked, job)
    if not values:
        return errors.NO_RESULT.reply(job.id)
    body, content_type = _joined(values)
    failure = errors.found_in(body)
    if failure is not None:
        return failure.reply(job.id)
    return Reply(body, headers={errors.REQUEST_ID: job.id.encode()}, content_type=content_type)


async def _values(asked: _Asked, job: Job) -> list[bytes]:
    """What a completed job has yielded, or else returned; each is JSON."""
    if job.output is not None and (job.output != b"[]" or not job.chunks):
        return _items(job.output)
    values: list[bytes] = []
    while more := (await asked.read(len(values), ROUND_S)).values:
        values += more
    return values


def _items(output: bytes) -> list[bytes]:
    return [bytes(item) for item in _list.decode(output)] if output.startswith(b"[") else [output]


def _joined(values: list[bytes]) -> tuple[bytes, bytes]:
    """One body of ``values``, and its content type."""
    if not all(value.startswith(b'"') for value in values):
        return (values[0] if len(values) == 1 else b"[%b]" % b",".join(values)), JSON
    text = "".join(map(_text.decode, values)).encode()
    return text, JSON if _is_json(text) else TEXT


def _is_json(text: bytes) -> bool:
    try:
        _any.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return text.lstrip()[:1] in (b"{", b"[")  # a number or a word may be what somebody said, written down


async def _stream(asked: _Asked) -> Reply:
    """Server-sent events. Nothing goes out before the first chunk is there: until then an error has a status of its own."""
    chunks = await asked.read(0, ROUND_S)
    while not chunks.values and not chunks.job.status.terminal:
        chunks = await asked.read(0, ROUND_S)
    job = chunks.job
    if not chunks.values:
        if job.status is not JobStatus.COMPLETED:
            return errors.of_job(job).reply(job.id)
        # It does not stream. What it gave as a whole, its client gets as the only event.
        chunks = Chunks(job, 0, [] if job.output is None else _items(job.output))
        if not chunks.values:
            return errors.NO_RESULT.reply(job.id)
    failure = errors.found_in(_first_event(chunks.values[0]))
    if failure is not None:
        return failure.reply(job.id)
    headers = {**events.HEADERS, errors.REQUEST_ID: job.id.encode()}
    return Reply(headers=headers, content_type=EVENTS, parts=_parts(asked, chunks))


def _first_event(chunk: bytes) -> bytes:
    """The data of the event that ``chunk`` begins with, if it is whole: proxies yield errors that way, their status lost."""
    if not chunk.startswith(b'"'):
        return chunk
    return _text.decode(chunk).partition("\n\n")[0].removeprefix("data:").strip().encode()


async def _parts(asked: _Asked, chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """The text of ``chunks`` and of all that follow; closed when the client has left."""
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
            following = await asked.following(chunks.end)
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
            asked.abandon()


class _EventStream:
    """Puts chunks together. A line that is not whole is held back: nothing could follow one that breaks off."""

    def __init__(self) -> None:
        self._held = ""
        self._at_gap = True
        self._ours = False

    def add(self, chunk: bytes) -> bytes:
        """What to send of ``chunk`` (JSON): text as it is, an object as an event, a list as its items."""
        if chunk.startswith(b'"'):
            return self._add_text(_text.decode(chunk))
        if chunk.startswith(b"["):
            return b"".join(map(self.add, _items(chunk)))
        failure = errors.found_in(chunk)
        self._ours = True
        return self._gap() + event(chunk if failure is None else failure.body)

    def failed(self, failure: errors.Failure) -> bytes:
        """The end of a stream that broke off."""
        self._held = ""
        return self._gap() + event(failure.body)

    def end(self) -> bytes:
        """The end of a whole stream. Whoever sends text says by itself that this was all, if its protocol wants that."""
        return self._held.encode() + (b"data: [DONE]\n\n" if self._ours else b"")

    def _add_text(self, text: str) -> bytes:
        whole, newline, self._held = (self._held + text).rpartition("\n")
        lines = whole + newline
        if lines:
            self._at_gap = lines.replace("\r", "").endswith("\n\n")
            self._ours = False
        return lines.encode()

    def _gap(self) -> bytes:
        """What must stand before an event of ours: the rest of the handler's text and the end of its event."""
        rest = self._held + "\n" if self._held else ""
        before = "" if self._at_gap and not rest else rest + "\n"
        self._held, self._at_gap = "", True
        return before.encode()


def _nothing(_: object) -> None:
    """What came too late belongs to nobody."""
