"""The template: forks workers on demand. Runs in the template process, as ``python …/supervisor/template/main.py SOCKET LOCK…``.

SOCKET is the descriptor of its end of the socket pair; each LOCK is held open until all forked processes have exited. A template
that an import has made unfit for forking executes itself again, with its state in one more argument, ``again=DESCRIPTOR``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Python has put this file's folder on the path; nothing may be imported from there. The package's own folder comes first
    # until the package is found, instead of supervisord, then last: a checkout's other folders must not hide installed modules.
    _folders = [str(folder) for folder in Path(__file__).resolve().parents[:3]]  # template, supervisor, where that lies
    sys.path[:] = [path for path in sys.path if path != _folders[0]]
    sys.path.insert(0, _folders[2])
    import supervisor  # noqa: F401 - later imports find it in sys.modules

    del sys.path[0]
    if _folders[2] not in sys.path:
        sys.path.append(_folders[2])

import ctypes
import errno
import select
import shutil
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from supervisor.errors import SuperviseError, WireError
from supervisor.host.limits import raise_oom_score
from supervisor.host.processes import children_of, kill_with_group, set_death_signal, set_subreaper
from supervisor.template import child, guard
from supervisor.template.folders import Folders
from supervisor.template.preload.preload import Preloaded, UnforkableError, freeze, import_shared, preload
from supervisor.template.preload.thread_pools import find_pools
from supervisor.template.process_limit import ProcessLimiter
from supervisor.template.reap import Reaper
from supervisor.template.standby import Standby
from supervisor.wire import messages as wire
from supervisor.worker.main import EXIT_BROKEN, prepare

_MESSAGE_BYTES = 256 * 1024
_MESSAGES_A_TURN = 16
_AGAIN = "again="


class RestartState(msgspec.Struct, frozen=True):
    """State of a restarted template: the set-up, which the supervisor sends only once, and what must not be preloaded."""

    setup: wire.Setup
    preloaded: Preloaded


class TemplateServer:
    """Handles the supervisor's messages and the deaths of children in a single thread that blocks only in ``poll``."""

    def __init__(
        self, sock: socket.socket, locks: Sequence[int], entry: child.Entry, state: RestartState | None
    ) -> None:
        """Serve the supervisor at the other end of ``sock``; each forked child enters ``entry``."""
        sock.setblocking(False)
        self._environ, self._folder = dict(os.environ), Path.cwd()  # the original ones, for a restart
        self._restart_state = state
        self._sock = sock
        self._locks = locks
        self._entry = entry
        self._codec = wire.Codec[wire.ToTemplate](wire.ToTemplate)
        self._outbox: deque[bytes] = deque()
        self._poll = select.poll()
        self._own_pid = os.getpid()
        self._finished = False

    def run(self) -> None:
        """Serve until the supervisor sends Quit or exits, then kill all that was forked.

        Raises:
            WireError: the supervisor broke the protocol (raised after all is killed).
        """
        foreign = child.open_descriptors()
        set_death_signal(
            signal.SIGKILL
        )  # while importing it cannot poll the socket, and there are no workers to kill yet
        setup = self._restart_state.setup if self._restart_state is not None else self._receive_setup()
        if setup is None or guard.has_hung_up(self._sock):
            return
        started = time.monotonic()
        preloaded = self._import(setup)
        set_death_signal(0)
        # Workers keep the descriptors that imports opened.
        kept = set(child.open_descriptors()) - set(foreign)
        self._prepare(setup, kept)
        try:
            took_ms = (time.monotonic() - started) * 1000
            self._send(wire.TemplateReady(wire.VERSION, self._own_pid, preloaded.loaded, preloaded.skipped, took_ms))
            while not self._finished:
                self._turn()
        finally:
            self._standby.close()
            guard.kill_all(self._wakeup)
            for lock in self._locks:  # before removing files: the next supervisor may wait for the locks
                os.close(lock)
            shutil.rmtree(setup.tmp_root, ignore_errors=True)

    def _import(self, setup: wire.Setup) -> Preloaded:
        """Import what workers share; restart if that made this process unfit for forking."""
        set_subreaper()  # so that this process inherits what trials leave running
        import_shared()
        try:
            preloaded = self._restart_state.preloaded if self._restart_state is not None else preload(setup)
        except UnforkableError as error:
            self._restart(RestartState(setup, Preloaded((), ((setup.handler.target, str(error)),))))
        freeze()
        return preloaded

    def _restart(self, state: RestartState) -> NoReturn:
        """Execute the template again under the same pid, without threads, CUDA driver state and imported modules."""
        for pid in children_of(self._own_pid):
            kill_with_group(pid)
            os.waitpid(pid, 0)
        passed = os.memfd_create("template", 0)
        os.write(passed, msgspec.msgpack.encode(state))
        os.lseek(passed, 0, os.SEEK_SET)
        kept = {0, 1, 2, passed, self._sock.fileno(), *self._locks}
        for descriptor in child.open_descriptors():
            if descriptor in kept:
                os.set_inheritable(descriptor, True)
            else:
                os.close(descriptor)
        os.chdir(self._folder)
        os.execve(sys.executable, [*sys.orig_argv, f"{_AGAIN}{passed}"], self._environ)

    def _receive_setup(self) -> wire.Setup | None:
        poll = select.poll()  # a program with many descriptors may have given it a number that select() does not take
        poll.register(self._sock, select.POLLIN)
        poll.poll()
        received = self._receive()
        if received is None:
            return None
        message, _ = received
        if not isinstance(message, wire.Setup) or message.version != wire.VERSION:
            raise WireError(f"the template expects protocol version {wire.VERSION} and received {message!r}")
        return message

    def _prepare(self, setup: wire.Setup, kept: set[int]) -> None:
        self._setup = setup
        self._wakeup = self._watch_children()
        self._reaper = Reaper()
        self._folders = Folders(setup.tmp_root, self._reaper)
        self._limiter = ProcessLimiter(setup.limits.processes, self._reaper)
        self._standby = Standby(self._fork_worker, self._reaper)
        for descriptor in (self._sock.fileno(), self._wakeup, guard.open_supervisor()):
            if descriptor is not None:
                self._poll.register(descriptor, select.POLLIN)
        foreign = set(child.open_descriptors()) - kept - {0, 1, 2}
        self._inherited = child.Inherited(
            self._own_pid, self._sock, tuple(foreign), child.signals_to_restore(), find_pools()
        )

    def _watch_children(self) -> int:
        """Return a descriptor that becomes readable at each SIGCHLD. Called after the imports, which might replace handlers."""
        guard.ignore_signals()
        set_subreaper()
        readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        return readable

    def _turn(self) -> None:
        for descriptor, _ in self._poll.poll(self._patience_ms()):
            if descriptor == self._wakeup:
                guard.drain(self._wakeup)
            elif descriptor == self._sock.fileno():
                self._handle_socket()
            else:
                self._finished = True
        for event in self._reaper.turn():
            self._send(event)
            if isinstance(event, wire.Swept):
                self._folders.discard(event.slot, event.generation)
        self._folders.clean()
        self._limiter.turn()
        self._standby.turn()

    def _patience_ms(self) -> int | None:
        checks = (self._reaper.next_check, self._folders.next_check, self._limiter.next_check, self._standby.next_check)
        deadlines = [at for at in checks if at is not None]
        return max(0, int((min(deadlines) - time.monotonic()) * 1000) + 1) if deadlines else None

    def _handle_socket(self) -> None:
        self._flush()
        for _ in range(_MESSAGES_A_TURN):
            try:
                received = self._receive()
            except BlockingIOError:
                return
            if received is None:
                self._finished = True
                return
            self._handle(*received)

    def _handle(self, message: wire.ToTemplate, descriptors: list[int]) -> None:
        if isinstance(message, wire.Fork):
            self._fork(message, descriptors)
        elif isinstance(message, wire.Signal):
            self._reaper.signal_worker(message.slot, message.generation, message.signum)
        elif isinstance(message, wire.EndTree):
            self._reaper.signal_worker(message.slot, message.generation, signal.SIGKILL)
        elif isinstance(message, wire.Quit):
            self._finished = True
        else:
            raise WireError("a second set-up")

    def _fork(self, message: wire.Fork, descriptors: list[int]) -> None:
        slot, generation = message.slot, message.generation
        since = time.monotonic()
        try:
            if len(descriptors) != len(("connection", "log")):
                raise OSError(errno.EBADF, f"received {len(descriptors)} descriptors, not 2")
            assignment = child.Assignment(slot, generation, message.env, self._folders.make(slot, generation), since)
            try:
                connection, log = descriptors
                pid = self._standby.take(assignment, descriptors) or self._fork_worker(
                    lambda: (assignment, connection, log)
                )
            except OSError:
                self._folders.discard(slot, generation)
                raise
        except OSError as error:
            self._send(wire.ForkFailed(slot, generation, str(error)))
        else:
            self._reaper.add_worker(slot, generation, pid)
            self._send(wire.Forked(slot, generation, pid))
        for descriptor in descriptors:
            os.close(descriptor)

    def _fork_worker(self, get_assignment: child.GetAssignment) -> int:
        pid = child.fork(self._inherited.dispositions)
        if pid == 0:
            child.become_worker(self._entry, self._setup, get_assignment, self._inherited)
        return pid

    def _receive(self) -> tuple[wire.ToTemplate, list[int]] | None:
        """Return the next message and its descriptors; None if the supervisor has closed the socket.

        Raises:
            BlockingIOError: no message is waiting.
            WireError: the message is invalid.
        """
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._sock, _MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        if not data:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise WireError(f"a message of more than {_MESSAGE_BYTES} bytes, or one whose descriptors were cut off")
        return self._codec.decode(data), descriptors

    def _send(self, message: wire.FromTemplate) -> None:
        self._outbox.append(self._codec.encode(message))
        self._flush()

    def _flush(self) -> None:
        """Send what the socket accepts and keep the rest: a supervisor that does not read costs memory, but no report is lost."""
        try:
            while self._outbox:
                self._sock.send(self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            pass
        except ConnectionError:
            self._finished = True
        self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if self._outbox else 0))


def flush_c_output_by_line() -> None:
    """Make C's ``stdout`` line-buffered, in workers too, so that a crash loses no complete line."""
    if os.environ.get("PYTHONUNBUFFERED"):
        return  # then Python has made C's stdout unbuffered
    library = ctypes.CDLL(None)
    line_buffered = 1  # _IOLBF of <stdio.h>, the same in glibc and musl
    library.setvbuf(ctypes.c_void_p.in_dll(library, "stdout"), None, line_buffered, ctypes.c_size_t(0))


def run(arguments: Sequence[str], entry: child.Entry) -> NoReturn:
    """Run the template with ``arguments`` (SOCKET LOCK…); its workers start in ``entry``. Ends the process."""
    guard.ignore_signals()
    raise_oom_score(os.getppid())
    flush_c_output_by_line()
    descriptors = [int(argument) for argument in arguments if not argument.startswith(_AGAIN)]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    sys.argv[1:] = []
    status = EXIT_BROKEN
    try:
        # The variable keeps the socket open to the end: the supervisor kills this process when it is closed.
        template = TemplateServer(
            socket.socket(fileno=descriptors[0]), descriptors[1:], entry, _read_restart_state(arguments)
        )
        template.run()
        status = 0
    except SuperviseError as error:
        sys.stderr.write(f"supervise: the template stopped: {error}\n")
    except BaseException:  # noqa: BLE001 - printed here, since the process ends below
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Finalising an interpreter that has imported torch takes 300 ms.
        os._exit(status)


def _read_restart_state(arguments: Sequence[str]) -> RestartState | None:
    for argument in arguments:
        if argument.startswith(_AGAIN):
            with open(int(argument.removeprefix(_AGAIN)), "rb") as passed:
                return msgspec.msgpack.decode(passed.read(), type=RestartState)
    return None


if __name__ == "__main__":
    run(sys.argv[1:], prepare)
