"""Descriptors 0, 1 and 2 of a worker process, and its exit: none of the handler's output is lost; worker process.

The supervisor reads 1 and 2 through one pipe. Python's streams are unbuffered, as with ``python -u``, so a crash loses nothing.
If several jobs may run together, ``mark_prints`` makes each write of Python's streams name its job (``wire/log_frames.py``).
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
"""The id of the job that the current code runs for. Tasks, ``asyncio.to_thread`` and forks copy it with the context."""

_LIBC = ctypes.CDLL(None)
_C_STDOUT = ctypes.c_void_p.in_dll(_LIBC, "stdout")
_LINE_BUFFERED = 1  # _IOLBF of glibc and musl


class StandardStreams(NamedTuple):
    """The raw files below Python's ``stdout`` and ``stderr``."""

    out: io.FileIO
    err: io.FileIO


def rebuild() -> StandardStreams:
    """Recreate Python's three standard streams; return the raw files of stdout and stderr.

    Makes C's ``stdout`` line-buffered. Fatal signals print a traceback; ``STACK_SIGNAL`` prints one of all threads, even if
    native code holds the interpreter, and interrupted system calls are restarted (``faulthandler.register``).
    """
    out, err = io.FileIO(1, "w", closefd=False), io.FileIO(2, "w", closefd=False)
    # The originals too: code that restores the streams from them must not get the template's. (typeshed calls those Final.)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _unbuffered(out)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _unbuffered(err)  # type: ignore[misc]
    _LIBC.setvbuf(_C_STDOUT, None, _LINE_BUFFERED, ctypes.c_size_t(0))
    faulthandler.enable(2)
    faulthandler.register(STACK_SIGNAL, 2, all_threads=True, chain=False)
    return StandardStreams(out, err)


def mark_prints(streams: StandardStreams, pipe: tuple[int, int]) -> str:
    """Make each write to ``streams`` that goes to ``pipe`` (``file_behind``) name its job; return the mark by which the
    supervisor recognises such writes.

    Patches the objects themselves, since logging handlers and others hold references to them. Not used, and so without cost,
    in workers that run one job at a time.
    """
    mark = new_mark()
    for raw in (streams.out, streams.err):
        write = functools.partial(_write_marked, raw, pipe, mark)
        raw.write = write  # type: ignore[method-assign] # TextIOWrapper looks it up in the object at each write
    return mark


def flush() -> None:
    """Flush Python's streams and C's ``stdout``.

    ``fflush(NULL)``, for all of C's streams, would wait for a thread that blocks in ``fread`` on another stream.
    """
    for stream in (sys.stdout, sys.stderr):
        # The handler may have replaced or closed the stream: user code, and there is nowhere left to report its errors.
        with contextlib.suppress(Exception):
            stream.flush()
    _LIBC.fflush(_C_STDOUT)


def file_behind(raw: io.FileIO) -> tuple[int, int]:
    """Return the device and inode of the file or pipe behind ``raw``."""
    status = os.fstat(raw.fileno())
    return status.st_dev, status.st_ino


def exit_process(code: int) -> NoReturn:
    """Exit this process, from any thread. Every voluntary exit of a worker comes through here.

    Skips ``atexit`` functions, including those of ``multiprocessing`` and ``threading``: they are the template's or would wait
    for the handler's threads, and finalising torch alone takes 300 ms. The template kills the handler's child processes.
    """
    flush()
    os._exit(code)


def exit_as(ended: SystemExit) -> NoReturn:
    """Exit this process as Python does after ``sys.exit``."""
    code = ended.code
    if code is not None and not isinstance(code, int):
        # User code: the argument of sys.exit is printed, and the stream may be the handler's own.
        with contextlib.suppress(Exception):
            print(code, file=sys.stderr)  # noqa: T201 - what Python does
        code = 1
    exit_process((code or 0) & 0xFF)


def _unbuffered(raw: io.FileIO) -> io.TextIOWrapper:
    # A raw file instead of a buffer, as with ``python -u``, so that a write reaches the pipe at once.
    return io.TextIOWrapper(
        cast("io.BufferedWriter", raw), encoding="utf-8", errors="backslashreplace", write_through=True
    )


def _write_marked(raw: io.FileIO, pipe: tuple[int, int], mark: str, data: bytes) -> int | None:
    """Replace ``FileIO.write``: return the number of bytes written, or None if a non-blocking pipe accepted none."""
    job = JOB.get()
    # The handler may have redirected the descriptor to a file of its own, which must get the output without marks.
    if job is None or file_behind(raw) != pipe:
        return io.FileIO.write(raw, data)
    written = 0
    for frame, size in frames(mark, job, data):
        if io.FileIO.write(raw, frame) is None:
            return written or None
        written += size
    return written
