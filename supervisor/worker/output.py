"""Descriptors 0, 1 and 2 of a worker process, and its end: what the handler prints is kept until its very last word.

The supervisor reads 1 and 2 through one pipe. Nothing waits in a Python buffer, as with ``python -u``, so a crash loses nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import os
import sys
from typing import NoReturn, cast

_LIBC = ctypes.CDLL(None)
_C_STDOUT = ctypes.c_void_p.in_dll(_LIBC, "stdout")
_LINE_BUFFERED = 1  # _IOLBF of glibc and musl


def rebuild() -> None:
    """Make Python's three streams anew, let C's ``stdout`` write line by line, and have fatal signals leave a traceback."""
    # The originals as well: whoever restores the streams from them must not get the template's. (typeshed calls those Final.)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _unbuffered(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _unbuffered(2)  # type: ignore[misc]
    _LIBC.setvbuf(_C_STDOUT, None, _LINE_BUFFERED, ctypes.c_size_t(0))
    faulthandler.enable(2)


def flush() -> None:
    """Write what Python's and C's buffers hold.

    Of C only ``stdout``: ``fflush(NULL)`` would wait for a thread that blocks in ``fread`` on any other stream.
    """
    for stream in (sys.stdout, sys.stderr):
        # The handler may have put an object of its own there, or closed it: user code, and nowhere left to complain.
        with contextlib.suppress(Exception):
            stream.flush()
    _LIBC.fflush(_C_STDOUT)


def leave(code: int) -> NoReturn:
    """End this process, from any thread. Every end of a worker that it chooses itself comes through here.

    ``atexit`` functions, those of ``multiprocessing`` and ``threading`` included, are not run: they are the template's or would
    wait for threads of the handler, and torch's orderly exit alone takes 300 ms. What the handler started, the template ends.
    """
    flush()
    os._exit(code)


def leave_as(ended: SystemExit) -> NoReturn:
    """End this process as Python would when ``sys.exit`` was called."""
    code = ended.code
    if code is not None and not isinstance(code, int):
        # User code: what was given to sys.exit is printed, and the stream may be the handler's own.
        with contextlib.suppress(Exception):
            print(code, file=sys.stderr)  # noqa: T201 - what Python does
        code = 1
    leave((code or 0) & 0xFF)


def _unbuffered(fd: int) -> io.TextIOWrapper:
    # A raw file where the type wants a buffer: ``python -u`` puts it there as well, so a write is in the pipe at once.
    raw = cast("io.BufferedWriter", io.FileIO(fd, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
