"""The worker's end of the pipe to the supervisor: messages leave in order, and progress never blocks; worker process.

All frames go through one queue and are written without blocking, by any thread. ``send`` waits until its frame is written, but
without the lock. While the pipe is full, only the newest progress of each job is kept, for a thread that runs until the queue is
empty. The descriptor stays in blocking mode, because processes that inherit it share that mode: every call passes
``MSG_DONTWAIT`` instead.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from collections import deque

from supervisor.wire import messages as wire
from supervisor.worker import output

_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_READ_BYTES = 1 << 16
_CODEC: wire.Codec[wire.ToWorker] = wire.Codec(wire.ToWorker)  # made in the template: it takes half a millisecond


class _Frame:
    """The unwritten part of a frame; ``job`` if it is progress, which a newer value may replace."""

    __slots__ = ("job", "left")

    def __init__(self, left: bytes, job: str | None = None) -> None:
        self.left: bytes | memoryview = left
        self.job = job


class SupervisorPipe:
    """Messages from and to the supervisor. When the supervisor has exited, so does this process, at once."""

    def __init__(self, fd: int) -> None:
        """Own ``fd``, one end of a ``multiprocessing.Pipe(duplex=True)``. Processes forked from this one close it."""
        self._socket = socket.socket(fileno=fd)
        self._encode, self._decode = _CODEC.encode, _CODEC.decode
        self._reader = wire.FrameReader(sys.maxsize)  # the supervisor is trusted
        self._lock = threading.Lock()
        self._queue: deque[_Frame] = deque()
        # By running job: its progress in the queue, as long as nothing of it is written.
        self._newest: dict[str, _Frame | None] = {}
        self._flushing = False
        self._warned: set[str] = set()
        os.register_at_fork(after_in_child=self._after_fork)

    def fileno(self) -> int:
        """Return the descriptor, for the event loop."""
        return self._socket.fileno()

    def receive(self) -> list[wire.ToWorker]:
        """Return the messages that have arrived, without waiting."""
        messages: list[wire.ToWorker] = []
        while True:
            try:
                data = self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages
            except OSError:
                data = b""
            if not data:
                output.exit_process(0)
            messages += map(self._decode, self._reader.feed(data))
            if len(data) < _READ_BYTES:
                return messages

    def send(self, message: wire.FromWorker) -> None:
        """Send ``message``; return once it is in the pipe. Called in the main thread."""
        self._send(_Frame(wire.frame(self._encode(message))))

    def warn(self, text: str) -> None:
        """Send a warning for the user's log; the same ``text`` only once."""
        if text not in self._warned:
            self._warned.add(text)
            self.send(wire.Warning(text))

    def started(self, job: str) -> None:
        """Accept progress of ``job`` from now on."""
        with self._lock:
            self._newest[job] = None

    def ended(self, done: wire.Done) -> None:
        """Report the end of a job. Its unsent progress is dropped, and no more is accepted."""
        frame = _Frame(wire.frame(self._encode(done)))
        with self._lock:
            outdated = self._newest.pop(done.job, None)
            if outdated is not None:
                outdated.left = b""
        self._send(frame)

    def progress(self, job: str, value: bytes) -> None:
        """Report the progress of ``job`` (JSON) without blocking, from any thread. Ignored if the job does not run."""
        frame = wire.frame(self._encode(wire.Progress(job, value)))
        with self._lock:
            if job not in self._newest:
                return
            waiting = self._newest[job]
            if waiting is not None:
                waiting.left = frame
                return
            self._newest[job] = waiting = _Frame(frame, job)
            self._queue.append(waiting)
            if not self._flushing and not self._write():
                self._flushing = True
                threading.Thread(target=self._flush, name="supervise-progress", daemon=True).start()

    def _send(self, frame: _Frame) -> None:
        with self._lock:
            self._queue.append(frame)
            self._write()
        while frame.left:
            self._wait()
            with self._lock:
                self._write()

    def _flush(self) -> None:
        while True:
            self._wait()
            with self._lock:
                if self._write():
                    self._flushing = False
                    return

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        poll.poll()

    def _write(self) -> bool:
        """Write what the pipe accepts; return whether the queue is empty. The caller holds the lock."""
        while self._queue:
            frame = self._queue[0]
            if frame.left:
                try:
                    count = self._socket.send(frame.left, _FLAGS)
                except BlockingIOError:
                    return False
                except OSError:
                    output.exit_process(0)
                if frame.job in self._newest:
                    self._newest[frame.job] = None  # partly written: it cannot be replaced any more
                frame.left = memoryview(frame.left)[count:]
                if frame.left:
                    continue
            self._queue.popleft()
        return True

    def _after_fork(self) -> None:
        # In a forked child: the pipe belongs to the worker, and the lock may be held by a thread that the child lacks.
        self._socket.close()
        self._lock = threading.Lock()
        self._queue.clear()
        self._newest.clear()
