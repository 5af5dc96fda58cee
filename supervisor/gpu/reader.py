"""The reader process: reads GPUs on the supervisor's request, and is killed if a driver call hangs. Run as a file.

``python reader.py SUPERVISOR_PID SIMULATED_GPUS``, with the supervisor's socket as standard input. It exits when that socket
closes or the supervisor exits.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first (unless PYTHONSAFEPATH is set), and its modules would shadow others.
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
    """Serve the socket ``fd`` until process ``supervisor`` exits or closes its end; real GPUs unless ``simulated`` > 0."""
    # The supervisor decides when to exit, also if a service manager signals all processes. A call that hangs does not see the
    # socket close, hence the death signal.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    processes.set_death_signal(signal.SIGKILL)
    if os.getppid() != supervisor:
        return
    server = RequestServer(fd)
    attribution = Attribution(on_host=in_host_pid_namespace())
    server.serve(SimulatedSource(simulated) if simulated else NvmlSource(XidWatch(server.send), attribution))


class RequestServer:
    """Answers requests on the supervisor's socket."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._codec: wire.Codec[ToReader] = wire.Codec(ToReader)
        self._writing = threading.Lock()

    def send(self, message: FromReader) -> None:
        """Send a message, from any thread. ``serve`` detects a closed socket."""
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
    """Return the answer of ``source`` to ``request``."""
    if isinstance(request, List):
        return source.listing()
    at = time.monotonic()
    try:
        return Reading(request.number, at, tuple(source.sample(request.workers)))
    except SourceError as error:
        return Reading(request.number, at, error=str(error))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    # The driver's clean-up at exit may hang like any other call.
    os._exit(0)
