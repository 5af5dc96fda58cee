"""One template process: its socket and its child process. In the supervisor.

Sending and receiving do not block: messages are queued until the socket accepts them, and ``receive`` returns what has arrived.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Union

import msgspec

from supervisor.config.settings import SECRET_VARIABLES
from supervisor.errors import WireError
from supervisor.host.processes import kill
from supervisor.wire import messages as wire

PROGRAM = Path(__file__).resolve().parents[2] / "template" / "main.py"

SERVICE_MANAGERS = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
"""Variables that systemd sets for this process only: a handler's library that used them would report for the service."""

_MESSAGE_BYTES = 256 * 1024
_MESSAGES_A_TURN = 256
_DEATH_PATIENCE = 1.0


class TemplateExited(msgspec.Struct, frozen=True):
    """The template exited. ``status`` is ``-N`` for signal N, else its exit code; None if unknown."""

    status: int | None


Report = Union[wire.FromTemplate, TemplateExited]


class TemplateProcess:
    """A started template: sends requests to it and receives its reports."""

    def __init__(
        self,
        setup: wire.Setup,
        locks: Sequence[int] = (),
        environ: Mapping[str, str] | None = None,
        program: Path = PROGRAM,
    ) -> None:
        """Start the process and send it ``setup``; ``TemplateReady`` or ``TemplateExited`` follows.

        It keeps the descriptors ``locks`` open until all processes that it forked have exited. ``environ`` (by default this
        process's own) is its environment and its workers', ``without_secrets``.

        Raises:
            OSError: the process cannot be started.
        """
        self._codec = wire.Codec[wire.FromTemplate](wire.FromTemplate)
        self._outbox: deque[tuple[bytes, Sequence[int]]] = deque()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        passed = (theirs.fileno(), *locks)
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(program), *map(str, passed)],
                stdin=subprocess.DEVNULL,
                stdout=2,
                stderr=2,
                pass_fds=passed,
                start_new_session=True,
                env=without_secrets(os.environ if environ is None else environ) | {"SUPERVISE_RUN_ID": setup.run_id},
            )
        except OSError:
            self._sock.close()
            raise
        finally:
            theirs.close()
        self.send(setup)

    @property
    def pid(self) -> int:
        """The template's process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the descriptor that is readable when ``receive`` has something to return."""
        return self._sock.fileno()

    # --- messages -------------------------------------------------------------------------------------------------------

    def send(self, message: wire.ToTemplate, descriptors: Sequence[int] = ()) -> None:
        """Send ``message`` with ``descriptors``, now or when the socket accepts it; the descriptors are closed once sent."""
        self._outbox.append((self._codec.encode(message), descriptors))
        self.flush()

    @property
    def wants_write(self) -> bool:
        """True if ``flush`` must be called when the descriptor is writable."""
        return bool(self._outbox)

    def flush(self) -> None:
        """Send queued messages until the socket is full. ``receive`` detects a dead template."""
        while self._outbox:
            try:
                socket.send_fds(self._sock, [self._outbox[0][0]], self._outbox[0][1])
            except BlockingIOError:
                return
            except ConnectionError:
                self._drop(len(self._outbox))
                return
            self._drop(1)

    def _drop(self, count: int) -> None:
        """Remove the first ``count`` messages from the outbox, and close their descriptors."""
        for _ in range(count):
            for descriptor in self._outbox.popleft()[1]:
                os.close(descriptor)

    def receive(self) -> list[Report]:
        """Return the reports that have arrived; ``TemplateExited`` is the last. Blocks only for an exit status, at most 1 s."""
        reports: list[Report] = []
        while len(reports) < _MESSAGES_A_TURN:
            try:
                data, _, flags, _ = self._sock.recvmsg(_MESSAGE_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data, flags = b"", 0
            reports.append(self._read(data, whole=not flags & socket.MSG_TRUNC))
            if isinstance(reports[-1], TemplateExited):
                break
        return reports

    def _read(self, data: bytes, *, whole: bool) -> Report:
        """Decode a report. A template that closed its socket or sent a malformed report is killed."""
        if data and whole:
            with contextlib.suppress(WireError):
                return self._codec.decode(data)
        self.kill()
        return TemplateExited(self.wait(_DEATH_PATIENCE))

    # --- the process ----------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Resume the template if it was stopped by SIGSTOP."""
        if self._process.returncode is None:
            kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the template. Its workers die with it; what they started must be swept."""
        self._process.kill()

    def wait(self, timeout: float) -> int | None:
        """Return the exit status, or None if the template is alive after ``timeout`` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Close the socket: a living template terminates its workers and exits."""
        self._drop(len(self._outbox))
        self._sock.close()


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` as handlers may see it. Must happen before the exec: ``/proc/PID/environ`` keeps the original."""
    return {name: value for name, value in environ.items() if name not in SECRET_VARIABLES | SERVICE_MANAGERS}
