"""Tracebacks that show only the user's frames, without this program's; used in the worker process."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path

import supervisor

_OWN = str(Path(supervisor.__file__).parent) + "/"
_IMPORTLIB = importlib.__file__


def users_traceback(error: BaseException) -> str:
    """Format the traceback of ``error`` and of its causes as Python does, with the user's frames only."""
    formatted = traceback.TracebackException.from_exception(error)
    _strip(formatted)
    return utf8("".join(formatted.format()))


def users_stack() -> str:
    """Format the user's frames on the current stack, as in a traceback; empty if there are none."""
    stack = traceback.StackSummary.from_list([frame for frame in traceback.extract_stack() if _is_users(frame)])
    return utf8("".join(stack.format()))


def one_line(error: BaseException) -> str:
    """Format ``error`` as the last line of a traceback: ``ValueError: no such model``."""
    return utf8("".join(traceback.format_exception_only(type(error), error)).rstrip().rpartition("\n")[2])


def message(error: BaseException) -> str:
    """Return ``str(error)``, or a substitute if that raises: it is user code."""
    try:
        return utf8(str(error))
    except Exception as failure:  # noqa: BLE001 - __str__ of a user's exception is user code
        return f"<{type(error).__name__} whose text raises {type(failure).__name__}>"


def utf8(text: str) -> str:
    """Return ``text`` as a plain ``str`` with lone surrogates escaped, fit for a message."""
    return text.encode("utf-8", "backslashreplace").decode()


def _strip(formatted: traceback.TracebackException) -> None:
    pending, seen = [formatted], set()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.stack[:] = [frame for frame in one.stack if _is_users(frame)]
        pending += [other for other in (one.__cause__, one.__context__) if other is not None]
        pending += getattr(one, "exceptions", None) or []  # the members of a group, from Python 3.11 on


def _is_users(frame: traceback.FrameSummary) -> bool:
    name = frame.filename
    return not (name.startswith((_OWN, "<frozen importlib", "<frozen runpy")) or name == _IMPORTLIB)
