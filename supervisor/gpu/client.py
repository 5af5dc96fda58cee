"""The supervisor's end of the reader process: asks, receives, and replaces a reader that hangs or dies. Nothing here waits.

The one exception is ``list_gpus``, for the start of the program. Everything takes the time from its caller.
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
"""A driver whose GPUs are awake lists them in a fraction of this."""

_CHUNK = 65536
_LONGEST_PAUSE = 30.0
_LAST_WORDS = 4096
_REAP_S = 0.1


class ReaderGone(msgspec.Struct, frozen=True):
    """The reader hung or died and another one starts by itself; a request that was under way is not answered any more."""

    reason: str


ReaderEvent = Union[FromReader, ReaderGone]


class _Process:
    """One reader process: its socket, what it says last, and how it ended."""

    def __init__(self, command: list[str]) -> None:
        ours, theirs = socket.socketpair()
        # What it prints, it prints when it fails: a file in memory keeps that without anybody having to read it.
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
        """Write what the socket takes of ``unsent``. A dead reader is noticed where its socket is read."""
        try:
            with contextlib.suppress(BlockingIOError):
                while self.unsent:
                    self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except OSError:
            self.unsent = b""

    def last_words(self) -> str:
        """The last line that it printed; closes the file that holds it."""
        size = os.fstat(self._output).st_size
        text = os.pread(self._output, _LAST_WORDS, max(0, size - _LAST_WORDS)).decode("utf-8", "replace").strip()
        os.close(self._output)
        return text.rpartition("\n")[2]


class Reader:
    """Asks a reader process for samples; at most one request is under way, and a newer one waits behind it.

    Hand ``fileno()`` to a loop and call ``receive`` when it is readable; call ``tick`` by ``deadline()``. Both return events.
    """

    def __init__(self, simulate: int = 0, timeout: float = 5.0, start_timeout: float = 30.0) -> None:
        """Read real GPUs, or ``simulate`` pretend ones.

        A request may take ``timeout`` seconds; the first one of each process ``start_timeout``, because without a persistence
        daemon the driver takes seconds for each GPU to wake up.
        """
        self._simulate = simulate
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._poll = select.epoll()
        self._codec: wire.Codec[FromReader] = wire.Codec(FromReader)
        self._process: _Process | None = None
        self._dying: list[_Process] = []
        self._number = 0
        self._waiting: dict[str, WorkerRef] | None = None  # the workers of the request behind the one under way
        self._answer_by: float | None = None
        self._start_at: float | None = None
        self._failures = 0
        self._answered = False
        self._kept: list[ReaderEvent] = []  # heard while waiting for a list

    @property
    def pids(self) -> frozenset[int]:
        """Its processes, also one that was killed and is not gone: children of this process that nobody else may end or reap."""
        return frozenset(process.child.pid for process in (*self._dying, self._process) if process is not None)

    def start(self, now: float) -> list[ReaderEvent]:
        """Start the process, if none runs; when that fails, ``tick`` tries again."""
        if self._process is not None:
            return []
        self._start_at = None
        self._answered = False
        try:
            self._process = _Process([sys.executable, str(_MAIN), str(os.getpid()), str(self._simulate)])
        except OSError as error:
            return [self._gone(f"it cannot be started: {error}", now)]
        self._poll.register(self._process.socket, select.EPOLLIN)
        self._send_waiting(now)
        return []

    def fileno(self) -> int:
        """Readable when ``receive`` has something; the same descriptor for as long as this object lives."""
        return self._poll.fileno()

    def ask(self, workers: Mapping[str, WorkerRef], now: float) -> int:
        """Ask for a sample, begun after this call; returns the number that its ``Reading`` will carry.

        While a request is under way, or no reader runs, the new one waits and is sent as soon as can be. Only the newest waits:
        asking again returns the same number.
        """
        if self._waiting is None:
            self._number += 1
        self._waiting = dict(workers)
        if self._process is not None and self._answer_by is None:
            self._send_waiting(now)
        return self._number

    def receive(self, now: float) -> list[ReaderEvent]:
        """What the reader has said, without waiting."""
        self._reap()
        process, events, self._kept = self._process, self._kept, []
        if process is None:
            return events
        process.flush()
        try:
            while data := process.socket.recv(_CHUNK):
                events += [self._codec.decode(payload) for payload in process.frames.feed(data)]
            events.append(self._gone("it ended", now))
        except BlockingIOError:
            pass  # everything that is there has been read
        except ConnectionResetError:  # the end of one that left a request unread
            events.append(self._gone("it ended", now))
        except (OSError, WireError) as error:
            events.append(self._gone(str(error), now))
        if any(isinstance(event, get_args(Answer)) for event in events):
            self._failures, self._answered = 0, True
            if self._process is not None:
                self._answer_by = None
                self._send_waiting(now)
        return events

    def tick(self, now: float) -> list[ReaderEvent]:
        """Replace a reader whose answer is overdue; start the next one when its time has come."""
        self._reap()
        if self._process is not None and self._answer_by is not None and now >= self._answer_by:
            return [self._gone(f"NVML did not answer within {self._patience:g} s", now)]
        if self._process is not None:
            self._process.flush()
        if self._start_at is not None and now >= self._start_at:
            return self.start(now)
        return []

    def deadline(self) -> float | None:
        """When ``tick`` must be called; ``None`` while there is nothing to wait for."""
        return self._answer_by if self._process is not None else self._start_at

    def list_gpus(self, timeout: float, slow: Callable[[], None] | None = None, slow_after: float = SLOW_S) -> Listing:
        """The GPUs of this machine, waiting up to ``timeout`` seconds for them; for the start of the program only.

        Starts the process if need be. ``slow`` is called once if the answer takes longer than ``slow_after`` seconds. Without
        an answer the listing is empty, and its reason says why.
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
                if isinstance(event, ReaderGone):
                    return Listing(reason=f"the GPUs cannot be read: {event.reason}")
            now = time.monotonic()
            if slow is not None and now >= slow_at:
                slow()
                slow = None
            if now >= until:
                events = [self._gone(f"NVML did not answer within {timeout:g} s", now)]
                continue
            self._poll.poll(min(until, until if slow is None else slow_at) - now)
            events = self.receive(time.monotonic())

    def close(self) -> None:
        """End the process. Waits a tenth of a second for it to be gone; one that is stuck in the kernel is left to it."""
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

    def _gone(self, reason: str, now: float) -> ReaderGone:
        if self._process is not None:
            words = self._retire(self._process)
            reason = f"{reason} ({words})" if words else reason
        self._start_at = now + min(_LONGEST_PAUSE, 2.0**self._failures)
        self._failures += 1
        return ReaderGone(reason)

    def _retire(self, process: _Process) -> str:
        self._process = None
        self._answer_by = None
        self._poll.unregister(process.socket)
        process.socket.close()
        process.child.kill()  # one that is stuck in the kernel is not gone at once
        self._dying.append(process)
        return process.last_words()

    def _reap(self) -> None:
        self._dying = [process for process in self._dying if process.child.poll() is None]
