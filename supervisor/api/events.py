"""Server-sent events as responses: content negotiation, and the events of a job; in the supervisor."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from supervisor.api.call import JSON, Reply
from supervisor.protocol.sse import PING, RETRY, event, packed

if TYPE_CHECKING:
    from supervisor.engine.engine import Engine
    from supervisor.job import Job

CONTENT_TYPE = b"text/event-stream"
HEADERS = {b"cache-control": b"no-store", b"x-accel-buffering": b"no"}
"""For proxies: nginx, for one, would hold events back until its buffer is full."""

PING_S = 15.0
"""Seconds between pings on an idle stream: proxies close silent connections, most of them after 30 or 60 s."""

_QUALITY = re.compile(rb"q\s*=\s*([01](?:\.[0-9]{0,3})?)")


def reply(parts: AsyncGenerator[bytes, None]) -> Reply:
    """Return the response that streams the events in ``parts``."""
    return Reply(headers=HEADERS, content_type=CONTENT_TYPE, parts=parts)


def wanted(accept: bytes) -> bool:
    """Return whether an ``Accept`` header prefers events: it must name them (every client sends ``*/*``), and not rank JSON
    higher."""
    quality = {}
    for item in accept.lower().split(b","):
        kind, *parameters = [part.strip() for part in item.split(b";")]
        given = [float(found[1]) for part in parameters if (found := _QUALITY.fullmatch(part))]
        quality[kind] = given[0] if given else 1.0
    return 0 < quality.get(CONTENT_TYPE, 0) >= quality.get(JSON, 0)


async def of_chunks(engine: Engine, job_id: str, start: int) -> AsyncGenerator[bytes, None]:
    """Yield the job's chunks from index ``start`` on as events with their index as id, then its end."""
    yield RETRY
    while (chunks := await engine.streams.read(job_id, start, PING_S)) is not None:
        if not chunks.values and not chunks.job.status.terminal:
            yield PING
        while chunks.values:
            for part in packed(event(b'{"output":%b}' % chunk, id=at) for at, chunk in enumerate(chunks.values, start)):
                yield part
            start = chunks.end
            chunks = engine.streams.following(chunks)
        if chunks.job.status.terminal and start >= chunks.job.chunks:
            yield _end(chunks.job)
            return


async def of_log(engine: Engine, job_id: str, start: int) -> AsyncGenerator[bytes, None]:
    """Yield the job's output from byte ``start`` on, some lines an event, with the next byte as id, then its end."""
    yield RETRY
    while (log := await engine.logs.follow(job_id, start, PING_S)) is not None:
        start = log.end
        if log.text:
            yield event(log.text.removesuffix(b"\n"), id=start)
        elif log.job.status.terminal:
            yield _end(log.job)
            return
        else:
            yield PING


def _end(job: Job) -> bytes:
    return event(b'{"status":"%b"}' % job.status.value.encode(), name="end")
