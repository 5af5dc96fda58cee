"""The reader process: reads GPUs when the supervisor asks, and is killed when a driver's call hangs. Run as a file.

``python reader.py SUPERVISOR_PID SIMULATED_GPUS``, with the supervisor's socket as standard input. It ends with that socket, or
with the supervisor.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, it finds its own folder first (unless PYTHONSAFEPATH is set), whose module names are not meant for everyone.
    _here = Path(__file__).resolve()
    sys.path[:] = [str(_here.parents[2]), *(entry for entry in sys.path if Path(entry).resolve() != _here.parent)]

import os
import signal
import threading
import time
from typing import Union

from supervisor.gpu.attribution import Attribution, in_host_pid_namespace
from supervisor.gpu.nvml import NvmlSource, SourceError
from supervisor.gpu.records import LIMIT, Answer, FromReader, List, Reading, ToReader
from supervisor.gpu.simulated import SimulatedSource
from supervisor.gpu.xids import XidWatch
from supervisor.host import processes
from supervisor.wire import messages as wire

_CHUNK = 65536

Source = Union[NvmlSource, SimulatedSource]


def main(supervisor: int, simulated: int, fd: int = 0) -> None:
    """Answer on the socket ``fd`` until process ``supervisor`` is gone or closes its end; real GPUs unless ``simulated`` > 0."""
    # When to end is the supervisor's word, also when a service manager signals everyone. A call that hangs does not see the
    # socket close, so the kernel must help.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    processes.set_death_signal(signal.SIGKILL)
    if os.getppid() != supervisor:
        return
    server = RequestServer(fd)
    attribution = Attribution(on_host=in_host_pid_namespace())
    server.serve(SimulatedSource(simulated) if simulated else NvmlSource(XidWatch(server.send), attribution))


class RequestServer:
    """The supervisor's socket."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._codec: wire.Codec[ToReader] = wire.Codec(ToReader)
        self._writing = threading.Lock()

    def send(self, message: FromReader) -> None:
        """Send it whole, from any thread. That nobody listens any more is noticed where the socket is read."""
        left = memoryview(wire.frame(self._codec.encode(message)))
        try:
            with self._writing:
                while left:
                    left = left[os.write(self._fd, left) :]
        except (BrokenPipeError, ConnectionResetError):
            return

    def serve(self, source: Source) -> None:
        """Answer requests from ``source``, one after the other, until the socket closes."""
        frames = wire.FrameReader(LIMIT)
        while data := self._read():
            for payload in frames.feed(data):
                self.send(answer(self._codec.decode(payload), source))

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _CHUNK)
        except ConnectionResetError:
            return b""


def answer(request: ToReader, source: Source) -> Answer:
    """What ``source`` says to ``request``."""
    if isinstance(request, List):
        return source.listing()
    at = time.monotonic()
    try:
        return Reading(request.number, at, tuple(source.sample(request.workers)))
    except SourceError as error:
        return Reading(request.number, at, error=str(error))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    # The driver's own clean-up at exit may hang as any other of its calls.
    os._exit(0)
