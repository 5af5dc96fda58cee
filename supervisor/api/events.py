"""Server-sent events as answers: who asks for them, and those of a job; in the supervisor."""

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
"""For what stands between: nginx, for one, would hold events back until its buffer is full."""

PING_S = 15.0
"""After how long a stream that has nothing to say says that: proxies cut what is silent, most of them after 30 or 60 s."""

_QUALITY = re.compile(rb"q\s*=\s*([01](?:\.[0-9]{0,3})?)")


def reply(parts: AsyncGenerator[bytes, None]) -> Reply:
    """The answer that consists of the events in ``parts``."""
    return Reply(headers=HEADERS, content_type=CONTENT_TYPE, parts=parts)


def wanted(accept: bytes) -> bool:
    """Whether an ``Accept`` header asks for events: it must name them, and JSON not rather (``*/*`` is what everybody sends)."""
    quality = {}
    for item in accept.lower().split(b","):
        kind, *parameters = [part.strip() for part in item.split(b";")]
        given = [float(found[1]) for part in parameters if (found := _QUALITY.fullmatch(part))]
        quality[kind] = given[0] if given else 1.0
    return 0 < quality.get(CONTENT_TYPE, 0) >= quality.get(JSON, 0)


async def of_chunks(engine: Engine, job_id: str, start: int) -> AsyncGenerator[bytes, None]:
    """The job's chunks from index ``start`` on, each under its index, and its end."""
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
    """What the job printed from byte ``start`` on, some lines at a time, each time under the byte to go on with; and its end."""
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
