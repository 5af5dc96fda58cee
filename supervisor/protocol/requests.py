"""A request's body, checked at the door and made a ``JobRequest``; in the supervisor. Nowhere else is a client's JSON looked at.

``input`` is only checked for being JSON and carried on as the client wrote it. Everything refused here is a 400 that says what
and where. Unknown keys are ignored; optional keys that are ``null`` count as absent.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from typing import NamedTuple, NoReturn, TypeVar
from urllib.parse import urlsplit

import msgspec

from supervisor.errors import RequestError
from supervisor.job import JobRequest

_T = TypeVar("_T")
_ABSENT = msgspec.Raw()
_NULL = msgspec.Raw(b"null")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._~:@+=-]{0,127}")
_BYTE = re.compile(r"\(byte (\d+)\)$")
_MOST_MS = 2**53
"""Beyond it a client's JSON may have lost digits already."""


class _Body(msgspec.Struct):
    input: msgspec.Raw
    id: msgspec.Raw = _ABSENT
    webhook: msgspec.Raw = _ABSENT
    policy: msgspec.Raw = _ABSENT
    s3Config: msgspec.Raw = _ABSENT  # noqa: N815 - the name in the request


class _OpenAI(msgspec.Struct):
    stream: msgspec.Raw = _ABSENT


class _Policy(msgspec.Struct, rename="camel"):
    execution_timeout: msgspec.Raw = _ABSENT
    ttl: msgspec.Raw = _ABSENT
    low_priority: msgspec.Raw = _ABSENT


class _Limits(NamedTuple):
    low_priority: bool = False
    timeout_ms: int | None = None
    ttl_ms: int | None = None


#: A high surrogate that no low one follows: msgspec takes such a body for one that ends too early.
_HALF = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")

_body = msgspec.json.Decoder(_Body)
_openai = msgspec.json.Decoder(_OpenAI)
_policy = msgspec.json.Decoder(_Policy)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def job_request(body: bytes, idempotency_key: bytes | None = None) -> JobRequest:
    """What ``body`` asks for. Its ``id`` names the job; else ``idempotency_key`` does; else it gets a random one.

    Raises:
        RequestError: 400, the body is not as the API wants it.
    """
    try:
        return _checked(body, idempotency_key)
    except RecursionError:
        raise RequestError(400, "the body is nested too deeply") from None


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
        try:
            wanted = _openai_stream(body)
        except RecursionError:
            raise RequestError(400, "the body is nested too deeply") from None
        stream = _given(wanted) and _decode(wanted, "stream", bool, "true or false")
        fields += b',"openai_input":%b' % body
    given = _given_id(_ABSENT, idempotency_key)
    job_id = new_id() if given is None else given
    return JobRequest(job_id, b"{%b}" % fields, generated=given is None), stream


def _openai_stream(body: bytes) -> msgspec.Raw:
    if not body.isascii():
        _check_utf8(body)
    try:
        return _openai.decode(body).stream
    except msgspec.ValidationError as error:
        raise RequestError(400, f"the body must be a JSON object: {str(error).lower()}") from None
    except msgspec.DecodeError as error:
        _refuse_syntax(error, body)


def _checked(body: bytes, idempotency_key: bytes | None) -> JobRequest:
    if not body.isascii():
        _check_utf8(body)
    try:
        parsed = _body.decode(body)
    except msgspec.ValidationError as error:
        _refuse_shape(error)
    except msgspec.DecodeError as error:
        _refuse_syntax(error, body)
    given = _given_id(parsed.id, idempotency_key)
    job_id = new_id() if given is None else given
    if parsed.webhook is _ABSENT and parsed.policy is _ABSENT and parsed.s3Config is _ABSENT:
        return JobRequest(job_id, bytes(parsed.input), generated=given is None)
    return _with_options(parsed, job_id, generated=given is None)


def new_id() -> str:
    """An id that no job has: 48 bits of time, then 80 random ones. Ids in order of time more than halve the cost of a commit,
    since their index grows at one end (measured: 30 µs against 70)."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


def _with_options(body: _Body, job_id: str, *, generated: bool) -> JobRequest:
    extras: list[bytes] = []
    s3_config: bytes | None = None
    limits = _Limits()
    if _given(body.webhook):
        _check_webhook(body.webhook)
        extras.append(b'"webhook":%b' % body.webhook)
    if _given(body.policy):
        limits = _limits(body.policy)
        extras.append(b'"policy":%b' % body.policy)
    if _given(body.s3Config):
        _check_object(body.s3Config, "s3Config")
        s3_config = bytes(body.s3Config)
    joined = b"{%b}" % b",".join(extras) if extras else None
    return JobRequest(
        job_id,
        bytes(body.input),
        joined,
        s3_config,
        low_priority=limits.low_priority,
        generated=generated,
        timeout_ms=limits.timeout_ms,
        ttl_ms=limits.ttl_ms,
    )


def _given_id(given: msgspec.Raw, idempotency_key: bytes | None) -> str | None:
    """The id that the client's own word fixes, so that asking twice means the same job."""
    if _given(given):
        wanted = _decode(given, "id", str, "a string")
        if not _ID.fullmatch(wanted):
            raise RequestError(
                400, "id: expected 1 to 128 letters, digits or ._~:@+=- that begin with a letter, digit or _"
            )
        return wanted
    if idempotency_key is None:
        return None
    if not idempotency_key:
        raise RequestError(400, "the Idempotency-Key header is empty")
    return hashlib.sha256(idempotency_key).hexdigest()[:32]


def _check_webhook(raw: msgspec.Raw) -> None:
    url = _decode(raw, "webhook", str, "a string")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise RequestError(400, "webhook: expected an http or https URL")


def _limits(raw: msgspec.Raw) -> _Limits:
    """What ``policy`` says."""
    _check_object(raw, "policy")
    policy = _policy.decode(raw)
    return _Limits(
        _given(policy.low_priority) and _decode(policy.low_priority, "policy.lowPriority", bool, "true or false"),
        _milliseconds(policy.execution_timeout, "policy.executionTimeout"),
        _milliseconds(policy.ttl, "policy.ttl"),
    )


def _milliseconds(raw: msgspec.Raw, name: str) -> int | None:
    if not _given(raw):
        return None
    value = _decode(raw, name, int, "milliseconds as an integer")
    if not 0 < value < _MOST_MS:
        raise RequestError(400, f"{name}: expected a positive number of milliseconds")
    return value


def _check_object(raw: msgspec.Raw, name: str) -> None:
    try:
        _object.decode(raw)
    except msgspec.ValidationError:
        raise RequestError(400, f"{name}: expected an object") from None


def _given(raw: msgspec.Raw) -> bool:
    return raw is not _ABSENT and raw != _NULL


def _decode(raw: msgspec.Raw, name: str, kind: type[_T], expected: str) -> _T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError:
        raise RequestError(400, f"{name}: expected {expected}") from None


def _check_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8: {error.reason} at {_place(body, error.start)}") from None


def _refuse_shape(error: msgspec.ValidationError) -> NoReturn:
    text = str(error)
    if "missing required field" in text:
        raise RequestError(400, "input: missing; the body needs an `input` (any JSON value)") from None
    raise RequestError(400, f"the body must be a JSON object with `input`: {text[:1].lower()}{text[1:]}") from None


def _refuse_syntax(error: msgspec.DecodeError, body: bytes) -> NoReturn:
    if not body.strip():
        raise RequestError(400, "the body is empty; it must be a JSON object with `input`") from None
    text = str(error)
    found = _BYTE.search(text)
    if found is None and _HALF.search(body):
        raise RequestError(400, "the body has a \\u escape that is half a character (a lone surrogate)") from None
    if found is None:
        raise RequestError(400, f"the body is not JSON: it ends too early, at {_place(body, len(body))}") from None
    what = text[: found.start()].removeprefix("JSON is malformed: ").strip()
    raise RequestError(400, f"the body is not JSON: {what} at {_place(body, int(found[1]))}") from None


def _place(body: bytes, at: int) -> str:
    line = body.count(b"\n", 0, at) + 1
    column = at - body.rfind(b"\n", 0, at)
    return f"byte {at} (line {line}, column {column})"
