"""Descriptors 0, 1 and 2 of a worker process, and its end: what the handler prints is kept until its very last word.

The supervisor reads 1 and 2 through one pipe. Nothing waits in a Python buffer, as with ``python -u``, so a crash loses nothing.
Where several jobs may run together, ``mark_prints`` lets each write of Python's streams name its job (``wire/log_frames.py``).
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import faulthandler
import functools
import io
import os
import sys
from typing import NamedTuple, NoReturn, cast

from supervisor.host.processes import STACK_SIGNAL
from supervisor.wire.log_frames import frames, new_mark

JOB: contextvars.ContextVar[str | None] = contextvars.ContextVar("supervise_job", default=None)
"""The id of the job on whose behalf code runs. What copies the context (tasks, ``asyncio.to_thread``, a fork) copies it too."""

_LIBC = ctypes.CDLL(None)
_C_STDOUT = ctypes.c_void_p.in_dll(_LIBC, "stdout")
_LINE_BUFFERED = 1  # _IOLBF of glibc and musl


class StandardStreams(NamedTuple):
    """What is below Python's ``stdout`` and ``stderr``."""

    out: io.FileIO
    err: io.FileIO


def rebuild() -> StandardStreams:
    """Make Python's three streams anew.

    C's ``stdout`` is made to write line by line. Fatal signals leave a traceback; ``STACK_SIGNAL`` leaves one of all threads,
    also when native code holds the interpreter, and system calls that it interrupts go on (``faulthandler.register``).
    """
    out, err = io.FileIO(1, "w", closefd=False), io.FileIO(2, "w", closefd=False)
    # The originals as well: whoever restores the streams from them must not get the template's. (typeshed calls those Final.)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _unbuffered(out)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _unbuffered(err)  # type: ignore[misc]
    _LIBC.setvbuf(_C_STDOUT, None, _LINE_BUFFERED, ctypes.c_size_t(0))
    faulthandler.enable(2)
    faulthandler.register(STACK_SIGNAL, 2, all_threads=True, chain=False)
    return StandardStreams(out, err)


def mark_prints(streams: StandardStreams, pipe: tuple[int, int]) -> str:
    """Have each write to ``streams`` that goes to ``pipe`` (``file_behind``) name its job from now on; returns the mark by which
    the supervisor knows that.

    It is the objects themselves that change, since logging handlers and others hold them. A worker with one job at a time
    pays nothing for this.
    """
    mark = new_mark()
    for raw in (streams.out, streams.err):
        write = functools.partial(_write_marked, raw, pipe, mark)
        raw.write = write  # type: ignore[method-assign] # TextIOWrapper looks it up in the object at each write
    return mark


def flush() -> None:
    """Write what Python's and C's buffers hold.

    Of C only ``stdout``: ``fflush(NULL)`` would wait for a thread that blocks in ``fread`` on any other stream.
    """
    for stream in (sys.stdout, sys.stderr):
        # The handler may have put an object of its own there, or closed it: user code, and nowhere left to complain.
        with contextlib.suppress(Exception):
            stream.flush()
    _LIBC.fflush(_C_STDOUT)


def file_behind(raw: io.FileIO) -> tuple[int, int]:
    """Which file or pipe its descriptor leads to, by device and inode."""
    status = os.fstat(raw.fileno())
    return status.st_dev, status.st_ino


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


def _unbuffered(raw: io.FileIO) -> io.TextIOWrapper:
    # A raw file where the type wants a buffer: ``python -u`` puts it there as well, so a write is in the pipe at once.
    return io.TextIOWrapper(
        cast("io.BufferedWriter", raw), encoding="utf-8", errors="backslashreplace", write_through=True
    )


def _write_marked(raw: io.FileIO, pipe: tuple[int, int], mark: str, data: bytes) -> int | None:
    """``FileIO.write``: how many bytes were taken, None if a pipe that does not wait took none."""
    job = JOB.get()
    # The handler may have put a file of its own in the pipe's place, which is to get what it prints and nothing else.
    if job is None or file_behind(raw) != pipe:
        return io.FileIO.write(raw, data)
    written = 0
    for frame, size in frames(mark, job, data):
        if io.FileIO.write(raw, frame) is None:
            return written or None
        written += size
    return written
