"""Parses the ``error`` of a job whose handler raised, JSON text as RunPod's workers write it; for lists, screens, exceptions."""

from __future__ import annotations

import re

import msgspec

ERROR_CHARS = 200
"""Maximum length of a job's error in lists; ``/status`` has all of it."""

_CLASS = re.compile(r"<class '(.+)'>", re.DOTALL)


class Raised(msgspec.Struct, frozen=True):
    """The exception that a handler raised. ``error_type`` is ``str(type(e))``; the traceback has the user's frames only."""

    error_type: str
    error_message: str
    error_traceback: str = ""

    @property
    def line(self) -> str:
        """Type and message, as in the last line of a traceback."""
        return f"{type_name(self.error_type)}: {self.error_message}"


def type_name(error_type: str) -> str:
    """Return the name in an ``error_type`` such as ``<class 'ValueError'>``; a metaclass may format it differently."""
    found = _CLASS.fullmatch(error_type)
    return error_type if found is None else found[1]


def raised_in(error: str) -> Raised | None:
    """Parse a job's ``error``; None if it is no exception."""
    try:
        return msgspec.json.decode(error, type=Raised)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return None


def first_line(error: str) -> str:
    """Return the first line of a job's error; for an exception, its type and message."""
    raised = raised_in(error)
    return (error if raised is None else raised.line).strip().split("\n", 1)[0][:ERROR_CHARS]
