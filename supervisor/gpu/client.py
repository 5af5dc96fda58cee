"""The supervisor's client of the reader process: requests samples, and replaces a reader that hangs or dies.

No method blocks except ``list_gpus``, which is for the start of the program. The caller passes the time.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Union, get_args

import msgspec

from supervisor.config.settings import SECRET_VARIABLES
from supervisor.errors import WireError
from supervisor.gpu.records import LIMIT, Answer, FromReader, List, Listing, Sample, ToReader, Unwatched, WorkerRef, Xid
from supervisor.wire import messages as wire

_MAIN = Path(__file__).with_name("reader.py")
SLOW_S = 2.0
"""Seconds after which a listing counts as slow: a driver whose GPUs are awake takes a fraction."""

_CHUNK = 65536
_LONGEST_PAUSE = 30.0
_TAIL_BYTES = 4096
_REAP_S = 0.1


class ReaderFailed(msgspec.Struct, frozen=True):
    """The reader hung or exited, and another one starts; a pending request will not be answered."""

    reason: str


ReaderEvent = Union[FromReader, ReaderFailed]


class _Process:
    """One reader process: its socket and its output."""

    def __init__(self, command: list[str]) -> None:
        ours, theirs = socket.socketpair()
        # It prints only when it fails: a file in memory keeps that without being read.
        self._output = os.memfd_create("gpu-reader", os.MFD_CLOEXEC)
        try:
            self.child = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=self._output,
                stderr=self._output,
                env={name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES},
                start_new_session=True,
            )
        except OSError:
            ours.close()
            os.close(self._output)
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self.socket = ours
        self.frames = wire.FrameReader(LIMIT)
        self.unsent = b""

    def flush(self) -> None:
        """Send ``unsent`` as far as the socket accepts it. ``receive`` detects a dead reader."""
        try:
            with contextlib.suppress(BlockingIOError):
                while self.unsent:
                    self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except OSError:
            self.unsent = b""

    def output_tail(self) -> str:
        """Return the last line of the output, and close its file."""
        size = os.fstat(self._output).st_size
        text = os.pread(self._output, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode("utf-8", "replace").strip()
        os.close(self._output)
        return text.rpartition("\n")[2]


class Reader:
    """Requests samples from a reader process; at most one request is pending, and the newest one is queued behind it.

    Watch ``fileno()`` in a loop and call ``receive`` when it is readable; call ``tick`` by ``deadline()``. Both return events.
    """

    def __init__(self, simulate: int = 0, timeout: float = 5.0, start_timeout: float = 30.0) -> None:
        """Read real GPUs, or ``simulate`` simulated ones.

        A request may take ``timeout`` seconds, the first one of each process ``start_timeout``: without a persistence daemon the
        driver takes seconds to wake up each GPU.
        """
        self._simulate = simulate
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._poll = select.epoll()
        self._codec: wire.Codec[FromReader] = wire.Codec(FromReader)
        self._process: _Process | None = None
        self._dying: list[_Process] = []
        self._number = 0
        self._waiting: dict[str, WorkerRef] | None = None  # the workers of the queued request
        self._answer_by: float | None = None
        self._start_at: float | None = None
        self._failures = 0
        self._answered = False
        self._kept: list[ReaderEvent] = []  # received while waiting for a listing

    @property
    def pids(self) -> frozenset[int]:
        """The reader processes, also killed ones that have not exited: no other code may sweep or reap these children."""
        return frozenset(process.child.pid for process in (*self._dying, self._process) if process is not None)

    def start(self, now: float) -> list[ReaderEvent]:
        """Start the process if none runs; if that fails, ``tick`` retries."""
        if self._process is not None:
            return []
        self._start_at = None
        self._answered = False
        try:
            self._process = _Process([sys.executable, str(_MAIN), str(os.getpid()), str(self._simulate)])
        except OSError as error:
            return [self._fail(f"it cannot be started: {error}", now)]
        self._poll.register(self._process.socket, select.EPOLLIN)
        self._send_waiting(now)
        return []

    def fileno(self) -> int:
        """Return the descriptor that is readable when ``receive`` has something; it never changes."""
        return self._poll.fileno()

    def request(self, workers: Mapping[str, WorkerRef], now: float) -> int:
        """Request a sample, started after this call; return the number of its ``Reading``.

        While a request is pending, or no reader runs, the new one is queued. Only the newest is kept: another call then returns
        the same number.
        """
        if self._waiting is None:
            self._number += 1
        self._waiting = dict(workers)
        if self._process is not None and self._answer_by is None:
            self._send_waiting(now)
        return self._number

    def receive(self, now: float) -> list[ReaderEvent]:
        """Return received messages, without blocking."""
        self._reap()
        process, events, self._kept = self._process, self._kept, []
        if process is None:
            return events
        process.flush()
        try:
            while data := process.socket.recv(_CHUNK):
                events += [self._codec.decode(payload) for payload in process.frames.feed(data)]
            events.append(self._fail("it exited", now))
        except BlockingIOError:
            pass  # everything has been read
        except ConnectionResetError:  # it exited with a request unread
            events.append(self._fail("it exited", now))
        except (OSError, WireError) as error:
            events.append(self._fail(str(error), now))
        if any(isinstance(event, get_args(Answer)) for event in events):
            self._failures, self._answered = 0, True
            if self._process is not None:
                self._answer_by = None
                self._send_waiting(now)
        return events

    def tick(self, now: float) -> list[ReaderEvent]:
        """Replace a reader whose answer is overdue; start the next one when it is due."""
        self._reap()
        if self._process is not None and self._answer_by is not None and now >= self._answer_by:
            return [self._fail(f"NVML did not answer within {self._patience:g} s", now)]
        if self._process is not None:
            self._process.flush()
        if self._start_at is not None and now >= self._start_at:
            return self.start(now)
        return []

    def deadline(self) -> float | None:
        """Return when ``tick`` must be called; ``None`` if it need not."""
        return self._answer_by if self._process is not None else self._start_at

    def list_gpus(self, timeout: float, slow: Callable[[], None] | None = None, slow_after: float = SLOW_S) -> Listing:
        """Return the GPUs of this machine, blocking up to ``timeout`` seconds; for the start of the program only.

        Starts the process if needed. ``slow`` is called once if the answer takes longer than ``slow_after`` seconds. Without an
        answer the listing is empty, with a reason.
        """
        now = time.monotonic()
        until, slow_at = now + timeout, now + slow_after
        events, unasked = self.start(now), list[ReaderEvent]()
        if self._process is not None:
            self._send(List(), now)
        while True:
            unasked += [event for event in events if isinstance(event, (Xid, Unwatched))]
            for event in events:
                if isinstance(event, Listing):
                    self._kept = unasked
                    return event
                if isinstance(event, ReaderFailed):
                    return Listing(reason=f"the GPUs cannot be read: {event.reason}")
            now = time.monotonic()
            if slow is not None and now >= slow_at:
                slow()
                slow = None
            if now >= until:
                events = [self._fail(f"NVML did not answer within {timeout:g} s", now)]
                continue
            self._poll.poll(min(until, until if slow is None else slow_at) - now)
            events = self.receive(time.monotonic())

    def close(self) -> None:
        """Kill the process and wait up to 0.1 s for its exit; one that is stuck in the kernel is left behind."""
        if self._process is not None:
            self._retire(self._process)
        self._start_at = None
        for process in self._dying:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.child.wait(_REAP_S)
        self._poll.close()

    # --- inside

    @property
    def _patience(self) -> float:
        return self._timeout if self._answered else self._start_timeout

    def _send_waiting(self, now: float) -> None:
        if self._waiting is not None:
            workers, self._waiting = self._waiting, None
            self._send(Sample(self._number, workers), now)

    def _send(self, request: ToReader, now: float) -> None:
        process = self._process
        assert process is not None
        process.unsent += wire.frame(self._codec.encode(request))
        process.flush()
        self._answer_by = now + self._patience

    def _fail(self, reason: str, now: float) -> ReaderFailed:
        if self._process is not None:
            tail = self._retire(self._process)
            reason = f"{reason} ({tail})" if tail else reason
        self._start_at = now + min(_LONGEST_PAUSE, 2.0**self._failures)
        self._failures += 1
        return ReaderFailed(reason)

    def _retire(self, process: _Process) -> str:
        self._process = None
        self._answer_by = None
        self._poll.unregister(process.socket)
        process.socket.close()
        process.child.kill()  # one that is stuck in the kernel exits later
        self._dying.append(process)
        return process.output_tail()

    def _reap(self) -> None:
        self._dying = [process for process in self._dying if process.child.poll() is None]
