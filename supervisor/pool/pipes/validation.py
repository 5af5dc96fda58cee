"""Validates worker messages: types, sizes and embedded JSON. In the supervisor.

A worker runs the user's code, which may write anything into its pipe. A message that our worker code would not send is a
``WireError`` that names the limit, and the worker is killed; texts for the user are truncated. So no message, and no number in
it, decides how much memory the supervisor needs, or what a client of another job can read.
"""

from __future__ import annotations

import codecs

import msgspec

from supervisor.errors import WireError
from supervisor.wire import messages as wire

MAX_TEXT = 2_000
"""Characters of a text for the user: a warning, or a CUDA error."""

MAX_TRACEBACK = 256 * 1024
"""Characters of the traceback when the handler cannot be loaded."""

KINDS = ("function", "coroutine", "generator", "async_generator", "unknown")
"""The kinds of handlers."""

ENDS = ("COMPLETED", "FAILED", "CANCELLED")
"""The final states that a worker may report."""

_UTF8_PIECE = 2**20
_JSON: msgspec.json.Decoder[msgspec.Raw] = msgspec.json.Decoder(msgspec.Raw)


def checked(message: wire.FromWorker) -> wire.FromWorker:
    """Return ``message`` with its texts truncated.

    Raises:
        WireError: the message breaks the protocol.
    """
    if isinstance(message, wire.Done):
        return _done(message)
    if isinstance(message, wire.Chunk):
        _check_json(message.value, f"chunk {message.index}")
    elif isinstance(message, wire.Progress):
        if len(message.value) > wire.MAX_PROGRESS:
            raise WireError(f"a progress of {len(message.value)} bytes is over the limit of {wire.MAX_PROGRESS}")
        _check_json(message.value, "its progress")
    elif isinstance(message, wire.Ready) and message.kind not in KINDS:
        raise WireError(f"{message.kind[:80]!r} is not a kind of handler")
    elif isinstance(message, wire.LoadFailed):
        # The end of a traceback has the most information.
        return wire.LoadFailed(message.reason[:80], cut(message.message), message.traceback[-MAX_TRACEBACK:])
    elif isinstance(message, wire.Warning):
        return wire.Warning(cut(message.message))
    return message


def _done(message: wire.Done) -> wire.Done:
    reasons = (message.error is not None) + (message.cause is not None)
    if message.status not in ENDS or reasons != (message.status == "FAILED"):
        error = ("no error", "an error", "two errors")[reasons]
        raise WireError(f"{message.status[:80]!r} with {error} is not a valid end of a job")
    if message.output is not None:
        _check_json(message.output, "its output")
    if message.poisoned is not None and len(message.poisoned) > MAX_TEXT:
        return msgspec.structs.replace(message, poisoned=cut(message.poisoned))
    return message


def cut(text: str, length: int = MAX_TEXT) -> str:
    """Return ``text``, truncated to ``length`` characters with a note of how many are left out."""
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length} characters more)"


def _check_json(value: bytes, what: str) -> None:
    """Reject anything but one JSON value in UTF-8, since it is embedded in a larger one."""
    try:
        _JSON.decode(value)
        if not value.isascii():
            decode = codecs.getincrementaldecoder("utf-8")().decode
            for at in range(0, len(value), _UTF8_PIECE):  # in pieces: the decoded text takes four times the memory
                decode(value[at : at + _UTF8_PIECE])
            decode(b"", final=True)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"{what} is not JSON: {error}") from error
    except RecursionError:
        raise WireError(f"{what} is nested too deeply") from None
