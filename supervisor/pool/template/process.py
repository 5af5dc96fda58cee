"""Starts the template and talks to it; runs in the supervisor. The only file that asks for processes and signals.

Nothing here waits for the template: what its socket does not take is kept, and ``receive`` returns what is there. Workers on
other machines would live behind the same face.
"""

from __future__ import annotations

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


class Template:
    """The template as the supervisor sees it: requests go out, reports come in."""

    def __init__(self, program: Path = PROGRAM, *, output: int = 2) -> None:
        """Prepare to run ``program``; the template's own prints go to the descriptor ``output``."""
        self._program = program
        self._output = output
        self._codec = wire.Codec[wire.FromTemplate](wire.FromTemplate)
        self._outbox: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None

    def start(self, setup: wire.Setup, locks: Sequence[int] = (), environ: Mapping[str, str] | None = None) -> None:
        """Start the process and send it ``setup``; ``TemplateReady`` or ``Gone`` follows.

        It holds the descriptors ``locks`` open until nothing that it forked is alive. ``environ`` (by default this process's own)
        goes to it and its workers ``without_secrets``.

        Raises:
            OSError: the process cannot be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        passed = (theirs.fileno(), *locks)
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(self._program), *map(str, passed)],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=passed,
                start_new_session=True,
                env=without_secrets(os.environ if environ is None else environ) | {"SUPERVISE_RUN_ID": setup.run_id},
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._sock = ours
        self._send(setup)

    @property
    def pid(self) -> int:
        """The template's process id."""
        return self._running().pid

    def fileno(self) -> int:
        """The descriptor to wait on: readable when ``receive`` has something to return."""
        return self._open_socket().fileno()

    @property
    def wants_write(self) -> bool:
        """Whether ``flush`` must be called when the descriptor is writable."""
        return bool(self._outbox)

    def receive(self) -> list[Report]:
        """All reports that have come; ``Gone`` is the last of all. Never waits, but a moment for the exit status of the dead.

        Raises:
            WireError: a report cannot be read; nothing more will make sense.
        """
        reports: list[Report] = []
        sock = self._open_socket()
        while len(reports) < _MESSAGES_A_TURN:
            try:
                data, _, flags, _ = sock.recvmsg(_MESSAGE_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data, flags = b"", 0
            if not data:
                reports.append(Gone(self._learn_status()))
                break
            if flags & socket.MSG_TRUNC:
                raise WireError(f"a report of more than {_MESSAGE_BYTES} bytes")
            reports.append(self._codec.decode(data))
        return reports

    def fork(self, slot: str, generation: int, env: Mapping[str, str | None], connection: int, log: int) -> None:
        """Ask for that worker, with its ends of the two pipes, which the caller may close at once. ``Forked`` or ``ForkFailed``
        follows.

        ``env`` is set in the worker before any user code; None removes a variable.

        Raises:
            OSError: no descriptors are left.
        """
        self._send(wire.Fork(slot, generation, dict(env)), (connection, log))

    def signal(self, slot: str, generation: int, signum: int) -> None:
        """Send ``signum`` to that worker's process, if it lives."""
        self._send(wire.Signal(slot, generation, signum))

    def end_tree(self, slot: str, generation: int) -> None:
        """SIGKILL that worker and all it started. ``Died`` and ``Swept`` follow."""
        self._send(wire.EndTree(slot, generation))

    def quit(self) -> None:
        """End every worker and all they started, then the template: ``Gone`` with status 0 follows."""
        self._send(wire.Quit())

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it. A dead template is noticed by ``receive``."""
        sock = self._open_socket()
        while self._outbox:
            data, descriptors = self._outbox[0]
            try:
                socket.send_fds(sock, [data], descriptors)
            except BlockingIOError:
                return
            except ConnectionError:
                self._drop_outbox()
                return
            self._outbox.popleft()
            _close_all(descriptors)

    def resume(self) -> None:
        """Let the template go on if somebody has stopped it (SIGSTOP): what is asked of it would wait for ever."""
        if self._process is not None and self._process.returncode is None:
            kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the template itself. Its workers die with it; what they started is for ``sweep_orphans``."""
        self._running().kill()

    def close(self) -> None:
        """Let go of the socket: a template that lives ends all that it forked, and itself."""
        self._drop_outbox()
        if self._sock is not None:
            self._sock.close()

    def wait(self, timeout: float) -> int | None:
        """The template's exit status, or None if it lives on after ``timeout`` seconds."""
        try:
            return self._running().wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def _send(self, message: wire.ToTemplate, descriptors: tuple[int, ...] = ()) -> None:
        # Copies, since the caller may close its own and the socket may be full.
        copies: list[int] = []
        try:
            copies.extend(map(os.dup, descriptors))
        except OSError:
            _close_all(copies)
            raise
        self._outbox.append((self._codec.encode(message), tuple(copies)))
        self.flush()

    def _drop_outbox(self) -> None:
        for _, descriptors in self._outbox:
            _close_all(descriptors)
        self._outbox.clear()

    def _learn_status(self) -> int | None:
        # Its socket is closed: it is ending, or as good as dead.
        self.kill()
        return self.wait(_DEATH_PATIENCE)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the template was not started")
        return self._process

    def _open_socket(self) -> socket.socket:
        if self._sock is None:
            raise RuntimeError("the template was not started")
        return self._sock


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` as handlers may see it. Taken out before the template is exec'ed: ``/proc/PID/environ`` keeps showing it."""
    return {name: value for name, value in environ.items() if name not in SECRET_VARIABLES | SERVICE_MANAGERS}


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
