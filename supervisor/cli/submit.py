"""`supervise submit`: submits a job and optionally waits for it; a client's process."""

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
@click.option("--wait", is_flag=True, help="Wait until the job has ended and print its status.")
@click.option("--stream", "chunks", is_flag=True, help="Print the job's chunks as they arrive.")
@click.option("--id", "job_id", metavar="ID", help="The job's id; the same id twice means the same job.")
@click.option("--idempotency-key", metavar="KEY", help="The same key twice means the same job.")
@click.option("--webhook", metavar="URL", help="POST the job's status to URL when it has ended.")
@click.option("--low-priority", is_flag=True, help="Run the job only when no other job waits.")
@click.option("--execution-timeout", metavar="TIME", help="Time limit of each attempt: seconds, or 90s, 5m, 1h.")
@click.option("--ttl", metavar="TIME", help="Time to live, from now on, queued and running.")
@click.option("--json", "as_json", is_flag=True, help="Print the API's JSON instead of the id, on a terminal too.")
@remote.with_client
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
    name:=JSON for other types.

    \b
    supervise submit '{"prompt": "a cat"}'
    supervise submit prompt="a cat" steps:=20 --wait
    supervise submit --input-file request.json --stream
    supervise logs -f "$(supervise submit prompt="a cat")"

    Exit codes: 0; with --wait or --stream 1 if the job did not complete. Ctrl-C does not cancel the job.
    """
    if wait and chunks:
        raise UsageError("--wait and --stream are mutually exclusive")
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
    """Return the text of INPUT, from the arguments or the file."""
    if input_file is not None:
        if words:
            raise UsageError(f"--input-file and INPUT ({words[0]!r}) are mutually exclusive")
        return _read(input_file)
    if not words:
        raise UsageError("no INPUT: give JSON, pairs such as prompt=hello, or --input-file")
    pairs = [_PAIR.fullmatch(word) for word in words]
    if all(pairs):
        return msgspec.json.encode({pair["name"]: _value(pair) for pair in pairs if pair is not None})
    if len(words) > 1:
        odd = next(word for word, pair in zip(words, pairs, strict=True) if pair is None)
        raise UsageError(f"INPUT: {odd!r} is not a pair; write name=text or name:=JSON, or one JSON text in quotes")
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
    """Build the request body: ``given`` itself, or one with ``given`` as its input. Options override its fields."""
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
        changes = {name: value for name, value in policy.items() if value is not None}
        # The supervisor rejects a policy that is no object.
        body["policy"] = msgspec.Raw(msgspec.json.encode({**before, **changes} if isinstance(before, dict) else before))
    return msgspec.json.encode(body)


def _checked(text: bytes, where: str) -> bytes:
    """Return ``text``, stripped. Raises UsageError if it is not JSON."""
    text = text.strip()
    try:
        text.decode()
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: invalid JSON ({error}); write plain text as name=text") from None
    return text


def _milliseconds(where: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        seconds: float = duration(_LEAST_S).parse(text)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return round(seconds * 1000)
