"""A request's body, checked at the door and made a ``JobRequest``; in the supervisor. Nowhere else is a client's JSON looked at.

``input`` is only checked for being JSON and carried on as the client wrote it. Everything refused here is a 400 that says what
and where. Unknown keys are ignored; optional keys that are ``null`` count as absent. The docstrings of the types, which the API's
description shows, are read by clients.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from typing import Annotated, NoReturn, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from supervisor.errors import RequestError
from supervisor.job import JobRequest

_ID = r"[A-Za-z0-9_][A-Za-z0-9._~:@+=-]{0,127}"
#: Beyond 2**53 a client's JSON may have lost digits already.
_Milliseconds = Annotated[int, Meta(gt=0, lt=2**53)]


class Policy(msgspec.Struct, rename="camel"):
    """Limits of one job. Times are milliseconds; the server's own limits hold where there is none."""

    execution_timeout: Annotated[_Milliseconds | None, Meta(description="How long one start of it may last.")] = None
    ttl: Annotated[
        _Milliseconds | None, Meta(description="How long after its arrival it may still be queued or run.")
    ] = None
    low_priority: Annotated[bool | None, Meta(description="It waits until no other job does.")] = None


class NewJob(msgspec.Struct):
    """A job to run. Other fields than these are ignored."""

    input: Annotated[msgspec.Raw, Meta(description='Any JSON value; what the handler finds in `job["input"]`.')]
    id: Annotated[
        Annotated[str, Meta(extra_json_schema={"pattern": f"^{_ID}$"})] | None,
        Meta(description="A name of your own. The same one twice means the same job, which runs once."),
    ] = None
    webhook: Annotated[
        Annotated[str, Meta(extra_json_schema={"pattern": r"^https?://\S+$"})] | None,
        Meta(description="Where to POST the job's status when it has ended."),
    ] = None
    policy: Policy | None = None
    s3Config: Annotated[  # noqa: N815 - the name in the request
        dict[str, msgspec.Raw] | None, Meta(description="Reaches the handler alone; no answer ever shows it.")
    ] = None


class OpenAIRequest(msgspec.Struct):
    """A request body of OpenAI's API. It goes to the handler as it is."""

    stream: Annotated[bool | None, Meta(description="Answer with server-sent events as they come.")] = None


_T = TypeVar("_T")

_new_job = msgspec.json.Decoder(NewJob)
_openai = msgspec.json.Decoder(OpenAIRequest)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])

_BYTE = re.compile(r"\(byte (\d+)\)$")
#: A high surrogate that no low one follows: msgspec takes such a body for one that ends too early.
_HALF = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
#: Where a value is not as its type wants it: how msgspec's words end.
_WHERE = re.compile(r" - at `\$\.([\w.]+)`$")
_BODY = "the body"
_TIME = "milliseconds as an integer"
_WANTED = {
    "id": "a string",
    "webhook": "a string",
    "policy": "an object",
    "s3Config": "an object",
    "policy.executionTimeout": _TIME,
    "policy.ttl": _TIME,
    "policy.lowPriority": "true or false",
    "stream": "true or false",
}


def job_request(body: bytes, idempotency_key: bytes | None = None) -> JobRequest:
    """What ``body`` asks for. Its ``id`` names the job; else ``idempotency_key`` does; else it gets a random one.

    Raises:
        RequestError: 400, the body is not as the API wants it.
    """
    asked = decoded(_new_job, body)
    given = _given_id(asked.id, idempotency_key)
    job_id = new_id() if given is None else given
    if asked.webhook is None and asked.policy is None and asked.s3Config is None:
        return JobRequest(job_id, bytes(asked.input), generated=given is None)
    if asked.webhook is not None:
        _check_webhook(asked.webhook)
    policy = asked.policy or Policy()
    written = decoded(_object, body)
    extras = [
        b'"%b":%b' % (name.encode(), written[name])
        for name, value in (("webhook", asked.webhook), ("policy", asked.policy))
        if value is not None
    ]
    return JobRequest(
        job_id,
        bytes(asked.input),
        b"{%b}" % b",".join(extras) if extras else None,
        None if asked.s3Config is None else bytes(written["s3Config"]),
        low_priority=policy.low_priority or False,
        generated=given is None,
        timeout_ms=policy.execution_timeout,
        ttl_ms=policy.ttl,
    )


def openai_request(route: str, body: bytes | None, idempotency_key: bytes | None = None) -> tuple[JobRequest, bool]:
    """The job for a request of OpenAI's API at ``/v1/{route}``, and whether its answer is wanted as a stream.

    ``body`` is a JSON object and goes to the handler as it is; ``None``: the request has none (a GET).

    Raises:
        RequestError: 400, it is no object, or ``stream`` in it is no boolean.
    """
    fields = b'"openai_route":%b' % msgspec.json.encode(f"/v1/{route}")
    stream = False
    if body is not None:
        body = body if body.strip() else b"{}"
        stream = decoded(_openai, body).stream or False
        fields += b',"openai_input":%b' % body
    given = _given_id(None, idempotency_key)
    job_id = new_id() if given is None else given
    return JobRequest(job_id, b"{%b}" % fields, generated=given is None), stream


def new_id() -> str:
    """An id that no job has: 48 bits of time, then 80 random ones. Ids in order of time more than halve the cost of a commit,
    since their index grows at one end (measured: 30 µs against 70)."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


def _given_id(given: str | None, idempotency_key: bytes | None) -> str | None:
    """The id that the client's own word fixes, so that asking twice means the same job."""
    if given is not None:
        if not re.fullmatch(_ID, given):
            raise RequestError(
                400, "id: expected 1 to 128 letters, digits or ._~:@+=- that begin with a letter, digit or _"
            )
        return given
    if idempotency_key is None:
        return None
    if not idempotency_key:
        raise RequestError(400, "the Idempotency-Key header is empty")
    return hashlib.sha256(idempotency_key).hexdigest()[:32]


def _check_webhook(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise RequestError(400, "webhook: expected an http or https URL")


def decoded(decoder: msgspec.json.Decoder[_T], body: bytes, name: str = _BODY) -> _T:
    """What ``decoder`` makes of ``body``, which messages call ``name``.

    Raises:
        RequestError: 400, it is no JSON, or of another shape; says what and where.
    """
    try:
        if not body.isascii():  # msgspec looks only at the strings that it makes, not at those in a ``Raw``
            body.decode()
        return decoder.decode(body)
    except UnicodeDecodeError as error:
        raise RequestError(400, f"{name} is not UTF-8: {error.reason} at {_place(body, error.start, name)}") from None
    except RecursionError:
        raise RequestError(400, f"{name} is nested too deeply") from None
    except msgspec.ValidationError as error:
        _refuse_shape(str(error), " with `input`" if decoder is _new_job else "")
    except msgspec.DecodeError as error:
        _refuse_syntax(str(error), body, name)


def _refuse_shape(said: str, needs: str) -> NoReturn:
    if "missing required field" in said:
        raise RequestError(400, "input: missing; the body needs an `input` (any JSON value)") from None
    where = _WHERE.search(said)
    wanted = _WANTED.get(where[1]) if where is not None else None
    if where is None or wanted is None:
        raise RequestError(400, f"the body must be a JSON object{needs}: {said[:1].lower()}{said[1:]}") from None
    if wanted == _TIME and ", got " not in said:
        wanted = "a positive number of milliseconds"
    raise RequestError(400, f"{where[1]}: expected {wanted}") from None


def _refuse_syntax(said: str, body: bytes, name: str) -> NoReturn:
    if not body.strip():
        raise RequestError(400, f"{name} is empty; it must be a JSON object with `input`") from None
    found = _BYTE.search(said)
    if found is None and _HALF.search(body):
        raise RequestError(400, f"{name} has a \\u escape that is half a character (a lone surrogate)") from None
    if found is None:
        raise RequestError(400, f"{name} is not JSON: unexpected end at {_place(body, len(body), name)}") from None
    what = said[: found.start()].removeprefix("JSON is malformed: ").strip()
    raise RequestError(400, f"{name} is not JSON: {what} at {_place(body, int(found[1]), name)}") from None


def _place(body: bytes, at: int, name: str) -> str:
    if name != _BODY:  # a line of a file, whose number is known
        return f"byte {at}"
    line = body.count(b"\n", 0, at) + 1
    column = at - body.rfind(b"\n", 0, at)
    return f"byte {at} (line {line}, column {column})"
