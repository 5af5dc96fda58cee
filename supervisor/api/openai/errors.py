"""OpenAI's error object, made from a handler's error, a job's end or our own errors; in the supervisor.

OpenAI's clients choose an exception by the HTTP status, which a handler that forwards another server's response can only hint at.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from supervisor.api.call import Reply
from supervisor.errors import RequestError
from supervisor.job import Job, JobStatus
from supervisor.protocol.answers import OpenAIError, OpenAIProblem
from supervisor.protocol.job_error import type_name
from supervisor.protocol.responses import encode
from supervisor.protocol.wording import error_of, words

REQUEST_ID = b"x-request-id"
"""The header where OpenAI's clients find a request's id (``_request_id`` of their results); here it is the job's."""

_PATH = re.compile(r"(/v2/[^/]*)?/openai(/|$)")
_ERRORS = range(400, 600)

#: Values of ``code`` or ``type`` that imply a status: OpenAI's, Anthropic's, vLLM's.
_STATUS_OF = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "NotFoundError": 404,
    "model_not_found": 404,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "overloaded_error": 503,
    "timeout_error": 504,
}
_TYPE_OF = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

#: The only place where worker-vllm ("vLLM returned HTTP 404: …") and worker-sglang ("failed with status 404") forward a status.
_STATUS_IN_TEXT = re.compile(r"\b(?:HTTP|status)(?: code)? ([45][0-9]{2})\b")


class Failure(msgspec.Struct, frozen=True):
    """An error for a client of OpenAI's API. ``final``: its library should not retry by itself.

    A failed job is final, unless its error has a status: the library would run it twice more, but how often a job may run is up
    to ``--max-attempts``.
    """

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | int | None = None
    final: bool = False

    @property
    def body(self) -> bytes:
        """The JSON ``{"error": {…}}``, with all four keys."""
        return encode(OpenAIError(OpenAIProblem(self.message, self.type, self.param, self.code)))

    def reply(self, job_id: str) -> Reply:
        """Return the response to the request that became the job ``job_id``."""
        headers = {REQUEST_ID: job_id.encode()}
        if self.final:
            headers[b"x-should-retry"] = b"false"  # OpenAI's own header; its clients obey it
        return Reply(self.body, self.status, headers)


class _ErrorFields(msgspec.Struct):
    """The possible fields of an error object: OpenAI's, those of an exception, or either one level down."""

    object: Any = None
    error: Any = None
    message: Any = None
    type: Any = None
    param: Any = None
    code: Any = None
    error_type: Any = None
    error_message: Any = None


_error_fields = msgspec.json.Decoder(_ErrorFields)


def speaks_openai(path: str) -> bool:
    """Return whether clients of ``path`` expect OpenAI's error objects."""
    return _PATH.match(path) is not None


def of_refusal(error: RequestError) -> Failure:
    """Make the error for a rejected request."""
    return Failure(error.status, str(error), _type_of(error.status))


def of_job(job: Job) -> Failure:
    """Make the error for a job that ended but did not complete."""
    if job.status is JobStatus.TIMED_OUT:
        return Failure(504, error_of(job) or "the job ran out of time", "timeout_error", final=True)
    if job.status is JobStatus.CANCELLED:  # 499: clients would retry 408 and 409
        return Failure(499, "the job was cancelled", "cancelled", final=True)
    if job.cause is not None:  # not parsed: a worker's output tail may contain a status that means nothing here
        return Failure(500, words(job.cause), _type_of(500), final=True)
    text = job.error or "the job failed"
    return _failure(_parsed(text.encode()) or _ErrorFields(message=text), text)


def found_in(value: bytes) -> Failure | None:
    """Read a handler's value (JSON) as an error: OpenAI's object, or vLLM's older ``{"object": "error", …}``; else None.

    Other objects of OpenAI's API may have an ``error`` too, but then their ``object`` is set.
    """
    fields = _parsed(value)
    if fields is None or fields.object not in (None, "error") or not (fields.error or fields.object):
        return None
    return _failure(fields, value.decode())


NO_RESULT = Failure(500, "the job completed without a result", "server_error", final=True)
BROKEN_OFF = Failure(
    500, "the job lost its worker and was restarted (--requeue-streams), or was deleted", "server_error"
)
"""The end of a stream that cannot go on."""


def _parsed(value: bytes) -> _ErrorFields | None:
    """Parse ``value``; None if it is no JSON object."""
    try:
        return _error_fields.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _failure(fields: _ErrorFields, text: str) -> Failure:
    while isinstance(fields.error, dict):
        fields = msgspec.convert(fields.error, _ErrorFields)
    if isinstance(fields.error_message, str):
        message = f"{type_name(str(fields.error_type))}: {fields.error_message}"
    else:
        message = next((each for each in (fields.message, fields.error) if isinstance(each, str) and each), text)
    status = _status(fields, message)
    return Failure(
        status or 500,
        message,
        fields.type if isinstance(fields.type, str) else _type_of(status or 500),
        fields.param if isinstance(fields.param, str) else None,
        fields.code if isinstance(fields.code, (str, int)) else None,
        final=status is None,
    )


def _status(fields: _ErrorFields, message: str) -> int | None:
    """Return the HTTP status that an error implies, or None."""
    code = fields.code
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == len("404"):
        code = int(code)
    if isinstance(code, int) and code in _ERRORS:
        return code
    for word in (fields.code, fields.type):
        if isinstance(word, str) and word in _STATUS_OF:
            return _STATUS_OF[word]
    found = _STATUS_IN_TEXT.search(message)
    return int(found[1]) if found is not None else None


def _type_of(status: int) -> str:
    return _TYPE_OF.get(status, "invalid_request_error" if status < 500 else "server_error")
