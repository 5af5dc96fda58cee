"""Parses a line of a batch into a job request, and formats a job as an output line; in the supervisor's process.

An object with ``input`` is a request body, as `/run` accepts it; any other JSON value is the input itself. A line may give its
job an ``id``, which the handler and the output line show. Two lines with the same id are still two jobs.
"""

from __future__ import annotations

import time

import msgspec

from supervisor.batch.source import InputLine
from supervisor.errors import RequestError
from supervisor.job import Job, JobRequest, JobStatus
from supervisor.protocol.requests import decoded, job_request
from supervisor.protocol.responses import status_body

_ABSENT = msgspec.Raw()


class _Shape(msgspec.Struct):
    input: msgspec.Raw = _ABSENT


_shape = msgspec.json.Decoder(_Shape)
_value = msgspec.json.Decoder(msgspec.Raw)


def read_request(line: InputLine, longest: int) -> JobRequest:
    """Parse ``line``, which is not blank, into a job request.

    Raises:
        RequestError: the line is longer than ``longest`` bytes, invalid JSON, or no valid request body; says what and where.
    """
    text = line.text
    if text is None:
        raise RequestError(413, f"the line is {line.size} bytes long, more than --max-body allows ({longest})")
    if not text.startswith(b"{") or decoded(_shape, text, "the line").input is _ABSENT:
        decoded(_value, text, "the line")
        return JobRequest(line.name, text, generated=True)
    request = job_request(text)
    return msgspec.structs.replace(request, id=line.name) if request.generated else request


def id_of(line: InputLine, longest: int) -> str:
    """Return the id of the job for ``line``, without parsing most lines."""
    text = line.text
    if text is None or (b'"id"' not in text and b"\\u00" not in text):
        return line.name
    try:
        return read_request(line, longest).id
    except RequestError:
        return line.name


def rejected(line: InputLine, reason: str) -> Job:
    """Make the failed job of an invalid line."""
    now = time.time_ns() // 1_000_000
    return Job(0, line.name, JobStatus.FAILED, b"", now, ended_ms=now, error=reason)


def output_line(job: Job, number: int) -> bytes:
    """Format the output line of ``job``, whose input was line ``number``."""
    body = b'%b,"line":%d}\n' % (status_body(job)[:-1], number)
    # In JSON a line end is only whitespace between tokens, never inside a string.
    return body if body.find(b"\n") == len(body) - 1 else body[:-1].replace(b"\n", b" ") + b"\n"
