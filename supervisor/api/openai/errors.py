"""OpenAI's error object, made of what a handler said, of how a job ended or of our own refusals; in the supervisor.

Clients of OpenAI raise by the HTTP status, which a handler that passes on another server's answer can only hint at.
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
"""The header in which OpenAI's clients look for a request's id (``_request_id`` of what they return); here it is the job's."""

_PATH = re.compile(r"(/v2/[^/]*)?/openai(/|$)")
_ERRORS = range(400, 600)

#: What stands in ``code`` or ``type`` where no status does: OpenAI's words, Anthropic's, vLLM's.
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

#: How worker-vllm ("vLLM returned HTTP 404: …") and worker-sglang ("failed with status 404") pass on a status: nowhere else.
_STATUS_IN_TEXT = re.compile(r"\b(?:HTTP|status)(?: code)? ([45][0-9]{2})\b")


class Failure(msgspec.Struct, frozen=True):
    """What went wrong as a client of OpenAI is told. ``final``: its library should not ask again by itself.

    A job that has failed is final, unless its error has a status: the library would run it twice more, and how often a job may
    run is for ``--max-attempts`` to say.
    """

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | int | None = None
    final: bool = False

    @property
    def body(self) -> bytes:
        """``{"error": {…}}``, all four keys."""
        return encode(OpenAIError(OpenAIProblem(self.message, self.type, self.param, self.code)))

    def reply(self, job_id: str) -> Reply:
        """The answer of a request that became the job ``job_id``."""
        headers = {REQUEST_ID: job_id.encode()}
        if self.final:
            headers[b"x-should-retry"] = b"false"  # OpenAI's own word for it; its clients obey
        return Reply(self.body, self.status, headers)


class _Said(msgspec.Struct):
    """What may stand in an error object: OpenAI's fields, those of an exception, or either one level down."""

    object: Any = None
    error: Any = None
    message: Any = None
    type: Any = None
    param: Any = None
    code: Any = None
    error_type: Any = None
    error_message: Any = None


_said = msgspec.json.Decoder(_Said)


def speaks_openai(path: str) -> bool:
    """Whether who asks for ``path`` expects OpenAI's error objects."""
    return _PATH.match(path) is not None


def of_refusal(error: RequestError) -> Failure:
    """A request that became no job."""
    return Failure(error.status, str(error), _type_of(error.status))


def of_job(job: Job) -> Failure:
    """A job that ended otherwise than COMPLETED."""
    if job.status is JobStatus.TIMED_OUT:
        return Failure(504, error_of(job) or "the job ran out of time", "timeout_error", final=True)
    if job.status is JobStatus.CANCELLED:  # 499: 408 and 409 would be asked again
        return Failure(499, "the job was cancelled", "cancelled", final=True)
    if job.cause is not None:  # our own words: what a worker wrote last may have a status in it that means nothing here
        return Failure(500, words(job.cause), _type_of(500), final=True)
    text = job.error or "the job failed"
    return _failure(_parsed(text.encode()) or _Said(message=text), text)


def found_in(value: bytes) -> Failure | None:
    """The error that a handler's value (JSON) is, if it is one: OpenAI's object, or vLLM's older ``{"object": "error", …}``.

    Other objects of OpenAI's API may have an ``error`` too, and tell by their ``object`` that they are none.
    """
    said = _parsed(value)
    if said is None or said.object not in (None, "error") or not (said.error or said.object):
        return None
    return _failure(said, value.decode())


NO_RESULT = Failure(500, "the job completed without a result", "server_error", final=True)
BROKEN_OFF = Failure(
    500, "the job lost its worker and began anew (--requeue-streams), or was forgotten", "server_error"
)
"""Of a stream."""


def _parsed(value: bytes) -> _Said | None:
    """``None``: it is no JSON object."""
    try:
        return _said.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _failure(said: _Said, text: str) -> Failure:
    while isinstance(said.error, dict):
        said = msgspec.convert(said.error, _Said)
    if isinstance(said.error_message, str):
        message = f"{type_name(str(said.error_type))}: {said.error_message}"
    else:
        message = next((words for words in (said.message, said.error) if isinstance(words, str) and words), text)
    status = _status(said, message)
    return Failure(
        status or 500,
        message,
        said.type if isinstance(said.type, str) else _type_of(status or 500),
        said.param if isinstance(said.param, str) else None,
        said.code if isinstance(said.code, (str, int)) else None,
        final=status is None,
    )


def _status(said: _Said, message: str) -> int | None:
    """The HTTP status that an error means; ``None``: it says nothing of one."""
    code = said.code
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == len("404"):
        code = int(code)
    if isinstance(code, int) and code in _ERRORS:
        return code
    for word in (said.code, said.type):
        if isinstance(word, str) and word in _STATUS_OF:
            return _STATUS_OF[word]
    found = _STATUS_IN_TEXT.search(message)
    return int(found[1]) if found is not None else None


def _type_of(status: int) -> str:
    return _TYPE_OF.get(status, "invalid_request_error" if status < 500 else "server_error")
