"""The template: forks workers on demand. Runs in the template process, as ``python …/supervisor/template/main.py SOCKET LOCK…``.

SOCKET is the descriptor of its end of the socket pair; each LOCK one that it holds open until nothing that it forked is alive.
A template that its imports spoilt executes itself again, with ``again=DESCRIPTOR`` behind these: what it knew already.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Its own folder is no place to import from. The folder of the package goes to the end: it may be a checkout, whose
    # other folders must not hide installed modules; but first of all, so that this package is found and not supervisord.
    _folders = [str(folder) for folder in Path(__file__).resolve().parents[:3]]  # template, supervisor, where that lies
    sys.path[:] = [path for path in sys.path if path != _folders[0]]
    sys.path.insert(0, _folders[2])
    import supervisor  # noqa: F401 - found once, it is found for good

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
from supervisor.template.preload.preload import Preloaded, SpoiltError, freeze, import_shared, preload
from supervisor.template.preload.thread_pools import find_pools
from supervisor.template.process_limit import ProcessLimiter
from supervisor.template.reap import Reaper
from supervisor.template.standby import Standby
from supervisor.wire import messages as wire
from supervisor.worker.main import EXIT_BROKEN, prepare

_MESSAGE_BYTES = 256 * 1024
_MESSAGES_A_TURN = 16
_AGAIN = "again="


class Memory(msgspec.Struct, frozen=True):
    """What a template that starts anew knows: the set-up, which the supervisor says once, and what must not be preloaded."""

    setup: wire.Setup
    preloaded: Preloaded


class Template:
    """One thread, one loop: messages and deaths in, forks and reports out. Nothing in it waits but ``poll``."""

    def __init__(self, sock: socket.socket, locks: Sequence[int], entry: child.Entry, memory: Memory | None) -> None:
        """Serve the supervisor at the other end of ``sock``; each forked child enters ``entry``."""
        sock.setblocking(False)
        self._environ, self._folder = dict(os.environ), Path.cwd()  # as they were, to start anew
        self._memory = memory
        self._sock = sock
        self._locks = locks
        self._entry = entry
        self._codec = wire.Codec[wire.ToTemplate](wire.ToTemplate)
        self._outbox: deque[bytes] = deque()
        self._poll = select.poll()
        self._own_pid = os.getpid()
        self._finished = False

    def run(self) -> None:
        """Serve until the supervisor says so or is gone; then nothing that was forked is alive.

        Raises:
            WireError: the supervisor broke the protocol (after everything was ended).
        """
        foreign = child.open_descriptors()
        set_death_signal(signal.SIGKILL)  # while it imports it cannot listen, and there are no workers yet
        setup = self._memory.setup if self._memory is not None else self._receive_setup()
        if setup is None or guard.has_hung_up(self._sock):
            return
        started = time.monotonic()
        preloaded = self._import(setup)
        set_death_signal(0)
        # What an import holds open, it holds open in every worker too.
        kept = set(child.open_descriptors()) - set(foreign)
        self._prepare(setup, kept)
        try:
            took_ms = (time.monotonic() - started) * 1000
            self._send(wire.TemplateReady(wire.VERSION, self._own_pid, preloaded.loaded, preloaded.skipped, took_ms))
            while not self._finished:
                self._turn()
        finally:
            self._standby.close()
            guard.end_everything(self._wakeup)
            for lock in self._locks:  # the next supervisor may wait for them
                os.close(lock)
            shutil.rmtree(setup.tmp_root, ignore_errors=True)

    def _import(self, setup: wire.Setup) -> Preloaded:
        """Import what workers share, and may share. What trials start must come to this process when they end."""
        set_subreaper()
        import_shared()
        try:
            preloaded = self._memory.preloaded if self._memory is not None else preload(setup)
        except SpoiltError as error:
            self._start_anew(Memory(setup, Preloaded((), ((setup.handler.target, str(error)),))))
        freeze()
        return preloaded

    def _start_anew(self, memory: Memory) -> NoReturn:
        """Become a fresh process of the same pid: threads, the CUDA driver's state and all modules are gone."""
        for pid in children_of(self._own_pid):
            kill_with_group(pid)
            os.waitpid(pid, 0)
        passed = os.memfd_create("template", 0)
        os.write(passed, msgspec.msgpack.encode(memory))
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
            raise WireError(f"the template speaks version {wire.VERSION} and was told {message!r}")
        return message

    def _prepare(self, setup: wire.Setup, kept: set[int]) -> None:
        self._setup = setup
        self._wakeup = self._listen_for_deaths()
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

    def _listen_for_deaths(self) -> int:
        """A descriptor that gets readable at each SIGCHLD. The imports are over: nobody takes it away again."""
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
        looks = (self._reaper.next_look, self._folders.next_look, self._limiter.next_look, self._standby.next_look)
        deadlines = [at for at in looks if at is not None]
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
                raise OSError(errno.EBADF, f"{len(descriptors)} descriptors came along and not 2")
            order = child.Order(slot, generation, message.env, self._folders.make(slot, generation), since)
            try:
                connection, log = descriptors
                pid = self._standby.take(order, descriptors) or self._fork_worker(lambda: (order, connection, log))
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

    def _fork_worker(self, orders: child.Orders) -> int:
        pid = child.fork(self._inherited.dispositions)
        if pid == 0:
            child.become_worker(self._entry, self._setup, orders, self._inherited)
        return pid

    def _receive(self) -> tuple[wire.ToTemplate, list[int]] | None:
        """The next message and its descriptors; None when the supervisor is gone.

        Raises:
            BlockingIOError: there is none now.
            WireError: it cannot be read.
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
        """Send what the socket takes; a supervisor that does not read costs memory, not a worker's death unseen."""
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
    """Let C's ``stdout`` be flushed at each line, in workers too, as on a terminal: a crash would lose what it holds back."""
    if os.environ.get("PYTHONUNBUFFERED"):
        return  # then Python has told C to hold nothing back at all
    library = ctypes.CDLL(None)
    line_buffered = 1  # _IOLBF of <stdio.h>, the same in glibc and musl
    library.setvbuf(ctypes.c_void_p.in_dll(library, "stdout"), None, line_buffered, ctypes.c_size_t(0))


def run(arguments: Sequence[str], entry: child.Entry) -> NoReturn:
    """Be the template that ``arguments`` (SOCKET LOCK…) describe, whose workers begin by ``entry``; ends the process."""
    guard.ignore_signals()
    raise_oom_score(os.getppid())
    flush_c_output_by_line()
    descriptors = [int(argument) for argument in arguments if not argument.startswith(_AGAIN)]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    sys.argv[1:] = []
    status = EXIT_BROKEN
    try:
        # By this name its socket stays open to the end: who sees it closed kills this process.
        template = Template(socket.socket(fileno=descriptors[0]), descriptors[1:], entry, _remember(arguments))
        template.run()
        status = 0
    except SuperviseError as error:
        sys.stderr.write(f"supervise: the template ended: {error}\n")
    except BaseException:  # noqa: BLE001 - printed here, since the process ends below
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # The orderly end of an interpreter that has imported torch takes 300 ms.
        os._exit(status)


def _remember(arguments: Sequence[str]) -> Memory | None:
    for argument in arguments:
        if argument.startswith(_AGAIN):
            with open(int(argument.removeprefix(_AGAIN)), "rb") as passed:
                return msgspec.msgpack.decode(passed.read(), type=Memory)
    return None


if __name__ == "__main__":
    run(sys.argv[1:], prepare)
