"""The ``error`` of a job whose handler raised, JSON text as RunPod's workers write it; read for lists, screens and exceptions."""

from __future__ import annotations

import re

import msgspec

ERROR_CHARS = 200
"""How much of a job's error a list carries; the whole is in its ``/status``."""

_CLASS = re.compile(r"<class '(.+)'>", re.DOTALL)


class Raised(msgspec.Struct, frozen=True):
    """What the handler raised. ``error_type`` is ``str(type(e))``, the traceback the user's own."""

    error_type: str
    error_message: str
    error_traceback: str = ""

    @property
    def line(self) -> str:
        """Type and message, as the last line of a traceback has them."""
        return f"{type_name(self.error_type)}: {self.error_message}"


def type_name(error_type: str) -> str:
    """The name in an ``error_type`` such as ``<class 'ValueError'>``; a metaclass may have its own way to write that."""
    found = _CLASS.fullmatch(error_type)
    return error_type if found is None else found[1]


def raised_in(error: str) -> Raised | None:
    """What was raised, if ``error`` says so."""
    try:
        return msgspec.json.decode(error, type=Raised)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return None


def first_line(error: str) -> str:
    """The first line of a job's error; of an exception its type and message."""
    raised = raised_in(error)
    return (error if raised is None else raised.line).strip().split("\n", 1)[0][:ERROR_CHARS]
