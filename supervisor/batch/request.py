"""What a line of a batch asks for, as a job; in the supervisor's process.

An object with ``input`` is a request body, as `/run` takes it; any other JSON value is the input itself. A line may give its job
an ``id``: the handler and the output line show it. Two lines with the same one are still two jobs.
"""

from __future__ import annotations

import re
import time

import msgspec

from supervisor.batch.source import Line
from supervisor.errors import RequestError
from supervisor.job import Job, JobRequest, JobStatus
from supervisor.protocol.requests import job_request
from supervisor.protocol.responses import status_body

_ABSENT = msgspec.Raw()
_BYTE = re.compile(r" \(byte (\d+)\)$")


class _Shape(msgspec.Struct):
    input: msgspec.Raw = _ABSENT


_shape = msgspec.json.Decoder(_Shape)
_value = msgspec.json.Decoder(msgspec.Raw)


def read_request(line: Line, longest: int) -> JobRequest:
    """The job that ``line``, which is not blank, asks for.

    Raises:
        RequestError: the line is longer than ``longest`` bytes, no JSON, or not what a request body may be; says what and where.
    """
    text = line.text
    if text is None:
        raise RequestError(413, f"the line is {line.size} bytes long, more than --max-body allows ({longest})")
    try:
        if not text.isascii():
            text.decode()
        is_body = text.startswith(b"{") and _shape.decode(text).input is not _ABSENT
        if not is_body:
            _value.decode(text)
            return JobRequest(line.name, text, generated=True)
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the line is not UTF-8: {error.reason} at byte {error.start}") from None
    except msgspec.DecodeError as error:
        raise RequestError(400, f"the line is not JSON: {_what_and_where(error, text)}") from None
    except RecursionError:
        raise RequestError(400, "the line is nested too deeply") from None
    request = job_request(text)
    return msgspec.structs.replace(request, id=line.name) if request.generated else request


def id_of(line: Line, longest: int) -> str:
    """The id of the job that ``line`` becomes; most lines need not be parsed for that."""
    text = line.text
    if text is None or (b'"id"' not in text and b"\\u00" not in text):
        return line.name
    try:
        return read_request(line, longest).id
    except RequestError:
        return line.name


def refused(line: Line, reason: str) -> Job:
    """The job of a line that cannot be one."""
    now = time.time_ns() // 1_000_000
    return Job(0, line.name, JobStatus.FAILED, b"", now, ended_ms=now, error=reason)


def output_line(job: Job, number: int) -> bytes:
    """What the output says of ``job``, which was line ``number``."""
    body = b'%b,"line":%d}\n' % (status_body(job)[:-1], number)
    # Between JSON's own characters a line end is a blank; inside a string there is none.
    return body if body.find(b"\n") == len(body) - 1 else body[:-1].replace(b"\n", b" ") + b"\n"


def _what_and_where(error: msgspec.DecodeError, text: bytes) -> str:
    said = str(error).removeprefix("JSON is malformed: ")
    found = _BYTE.search(said)
    return f"it ends too early, at byte {len(text)}" if found is None else f"{said[: found.start()]} at byte {found[1]}"
