"""One template process, as the supervisor holds it: a socket to talk by, and the process to end. In the supervisor.

Nothing here waits for the template: what its socket does not take is kept, and ``receive`` returns what is there.
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
"""What systemd gives to this process alone: a handler's library that speaks to it would speak for the service."""

_MESSAGE_BYTES = 256 * 1024
_MESSAGES_A_TURN = 256
_DEATH_PATIENCE = 1.0


class Gone(msgspec.Struct, frozen=True):
    """The template is dead. ``status`` is ``-N`` for signal N, else its exit code; None if it could not be learnt."""

    status: int | None


Report = Union[wire.FromTemplate, Gone]


class TemplateProcess:
    """A template that was started: requests go out, reports come in."""

    def __init__(
        self,
        setup: wire.Setup,
        locks: Sequence[int] = (),
        environ: Mapping[str, str] | None = None,
        program: Path = PROGRAM,
    ) -> None:
        """Start the process and send it ``setup``; ``TemplateReady`` or ``Gone`` follows.

        It holds the descriptors ``locks`` open until nothing that it forked is alive. ``environ`` (by default this process's own)
        goes to it and its workers ``without_secrets``.

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
        """The descriptor to wait on: readable when ``receive`` has something to return."""
        return self._sock.fileno()

    # --- messages -------------------------------------------------------------------------------------------------------

    def send(self, message: wire.ToTemplate, descriptors: Sequence[int] = ()) -> None:
        """Send ``message`` with ``descriptors``, which are closed once they are sent; what the socket does not take is kept."""
        self._outbox.append((self._codec.encode(message), descriptors))
        self.flush()

    @property
    def wants_write(self) -> bool:
        """Whether ``flush`` must be called when the descriptor is writable."""
        return bool(self._outbox)

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it. A dead template is noticed by ``receive``."""
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
        """Let go of the first ``count`` messages in the outbox, and of the descriptors that went with them."""
        for _ in range(count):
            for descriptor in self._outbox.popleft()[1]:
                os.close(descriptor)

    def receive(self) -> list[Report]:
        """All reports that have come; ``Gone`` is the last of all. Never waits, but a moment for the exit status of the dead."""
        reports: list[Report] = []
        while len(reports) < _MESSAGES_A_TURN:
            try:
                data, _, flags, _ = self._sock.recvmsg(_MESSAGE_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data, flags = b"", 0
            reports.append(self._read(data, whole=not flags & socket.MSG_TRUNC))
            if isinstance(reports[-1], Gone):
                break
        return reports

    def _read(self, data: bytes, *, whole: bool) -> Report:
        """What it reports. One that has closed its socket is ending, and one that cannot be understood is as good as dead."""
        if data and whole:
            with contextlib.suppress(WireError):
                return self._codec.decode(data)
        self.kill()
        return Gone(self.wait(_DEATH_PATIENCE))

    # --- the process ----------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Let it go on if somebody has stopped it (SIGSTOP)."""
        if self._process.returncode is None:
            kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the template itself. Its workers die with it; what they started is left to a sweep."""
        self._process.kill()

    def wait(self, timeout: float) -> int | None:
        """Its exit status, or None if it lives on after ``timeout`` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Let go of the socket: a template that lives ends all that it forked, and itself."""
        self._drop(len(self._outbox))
        self._sock.close()


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` as handlers may see it. Taken out before the template is exec'ed: ``/proc/PID/environ`` keeps showing it."""
    return {name: value for name, value in environ.items() if name not in SECRET_VARIABLES | SERVICE_MANAGERS}
