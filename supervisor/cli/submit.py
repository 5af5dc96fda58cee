"""`supervise submit`: a job from the command line, and if wanted its end or its chunks; a client's process."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from supervisor.cli import jobs, remote
from supervisor.client.client import Client
from supervisor.config.kinds import duration
from supervisor.errors import UsageError

_PAIR = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)(?P<sign>:?=)(?P<value>.*)", re.DOTALL)
_LEAST_S = 0.001

_Object = dict[str, msgspec.Raw]


@click.command(context_settings=remote.HELP)
@click.argument("words", metavar="[INPUT]", nargs=-1)
@click.option("--input-file", metavar="FILE", help="Read INPUT from FILE; - is standard input.")
@click.option("--wait", is_flag=True, help="Wait until it ends and print its status.")
@click.option("--stream", "chunks", is_flag=True, help="Print its chunks as they come.")
@click.option("--id", "job_id", metavar="ID", help="Its ID; the same ID twice is the same job.")
@click.option("--idempotency-key", metavar="KEY", help="The same key twice is the same job.")
@click.option("--webhook", metavar="URL", help="Where to POST its status when it ends.")
@click.option("--low-priority", is_flag=True, help="Run it after all others.")
@click.option("--execution-timeout", metavar="TIME", help="How long one start of it may take: seconds, or 90s, 5m, 1h.")
@click.option("--ttl", metavar="TIME", help="How long from now it may be queued or run.")
@click.option("--json", "as_json", is_flag=True, help="Print the API's JSON instead of the ID, on a terminal too.")
@remote.asks
def submit(
    client: Client,
    words: tuple[str, ...],
    input_file: str | None,
    wait: bool,
    chunks: bool,
    idempotency_key: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Submit a job and print its ID.

    INPUT is JSON: a request body if it is an object with `input`, else the input itself. Or it is pairs: name=text, and
    name:=JSON for anything else.

    \b
    supervise submit '{"prompt": "a cat"}'
    supervise submit prompt="a cat" steps:=20 --wait
    supervise submit --input-file request.json --stream
    supervise logs -f "$(supervise submit prompt="a cat")"

    Exit codes: 0; with --wait or --stream 1 when the job did not complete. Ctrl-C leaves the job to itself.
    """
    if wait and chunks:
        raise UsageError("--wait, --stream: choose one of them")
    given = _given(words, input_file)
    state = client.submit(_body(given, **options), idempotency_key)
    if chunks:
        return jobs.follow(client, state.id, as_json)
    if wait:
        return jobs.show_end(client, state.id, as_json)
    if as_json:
        remote.put_json(state)
    else:
        click.echo(state.id)
    return 0


def _given(words: tuple[str, ...], input_file: str | None) -> bytes:
    """The text of INPUT, wherever it stands."""
    if input_file is not None:
        if words:
            raise UsageError(f"--input-file: INPUT is given as well ({words[0]!r}); leave one out")
        return _read(input_file)
    if not words:
        raise UsageError("no INPUT: give JSON, pairs such as prompt=hello, or --input-file")
    pairs = [_PAIR.fullmatch(word) for word in words]
    if all(pairs):
        return msgspec.json.encode({pair["name"]: _value(pair) for pair in pairs if pair is not None})
    if len(words) > 1:
        odd = next(word for word, pair in zip(words, pairs, strict=True) if pair is None)
        raise UsageError(f"INPUT: {odd!r} is no pair; write name=text or name:=JSON, or one JSON text in quotes")
    return words[0].encode("utf-8", "surrogateescape")


def _value(pair: re.Match[str]) -> msgspec.Raw:
    if pair["sign"] == "=":
        return msgspec.Raw(msgspec.json.encode(pair["value"]))
    return msgspec.Raw(_checked(pair["value"].encode("utf-8", "surrogateescape"), pair["name"]))


def _read(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"--input-file: cannot read {name}: {error.strerror}") from error


def _body(
    given: bytes,
    job_id: str | None,
    webhook: str | None,
    low_priority: bool,
    execution_timeout: str | None,
    ttl: str | None,
) -> bytes:
    """The request body: that in ``given``, or one with ``given`` as its input; options go before what stands there."""
    text = _checked(given, "INPUT")
    body = msgspec.json.decode(text, type=_Object) if text.startswith(b"{") else {}
    if "input" not in body:
        body = {"input": msgspec.Raw(text)}
    policy = {
        "executionTimeout": _milliseconds("--execution-timeout", execution_timeout),
        "ttl": _milliseconds("--ttl", ttl),
        "lowPriority": low_priority or None,
    }
    wanted = {"id": job_id, "webhook": webhook}
    body |= {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in wanted.items() if value is not None}
    if any(value is not None for value in policy.values()):
        before = msgspec.json.decode(body.get("policy", b"{}"), type=Any)
        said = {name: value for name, value in policy.items() if value is not None}
        # What is no object is for the supervisor to refuse.
        body["policy"] = msgspec.Raw(msgspec.json.encode({**before, **said} if isinstance(before, dict) else before))
    return msgspec.json.encode(body)


def _checked(text: bytes, where: str) -> bytes:
    """``text`` without blanks around it, if it is JSON."""
    text = text.strip()
    try:
        text.decode()
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: no JSON ({error}); text without quotes is written as name=text") from None
    return text


def _milliseconds(where: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        seconds: float = duration(_LEAST_S).parse(text)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return round(seconds * 1000)
