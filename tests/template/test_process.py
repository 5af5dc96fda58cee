"""The supervisor's side: it never waits for the template, and tells the ends of processes in words."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from multiprocessing.connection import wait

import pytest

from supervisor.cause import process_end
from supervisor.config.settings import SECRET_VARIABLES
from supervisor.pool.pipes.log_pipe import LOG_PIPE_BYTES
from supervisor.pool.template.launch import make_pipes
from supervisor.pool.template.process import TemplateExited, TemplateProcess, without_secrets
from supervisor.protocol import wording
from supervisor.wire import messages as wire


def test_requests_wait_for_a_template_that_does_not_read(house, children):
    os.kill(house.template.pid, signal.SIGSTOP)
    while not house.template.wants_write:
        house.template.send(wire.Signal("gpu9", 1, signal.SIGTERM))
    # Queued behind them, with copies of the descriptors: the caller closes its own.
    worker = house.fork("reports_itself")
    os.kill(house.template.pid, signal.SIGCONT)
    while house.template.wants_write:
        assert wait([house.template], 0) == []
        house.template.flush()
    assert worker.hears()["pid"] == house.expect(wire.Forked).pid


def test_requests_to_a_dead_template_are_dropped(house):
    house.template.kill()
    assert house.expect(TemplateExited) == TemplateExited(-signal.SIGKILL)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - how many
    worker = house.fork("reports_itself")
    house.template.send(wire.EndTree("cpu0", 1))
    assert not house.template.wants_write
    assert len(os.listdir("/proc/self/fd")) == before + 2  # noqa: PTH208 - the supervisor's ends of the worker's pipes
    with pytest.raises(EOFError):
        worker.pipes.connection.recv_bytes()


def test_a_template_that_cannot_be_understood_is_as_good_as_dead(tmp_path):
    program = tmp_path / "babbles.py"
    program.write_text(
        "import signal, socket, sys\nsocket.socket(fileno=int(sys.argv[1])).send(b'?')\nsignal.pause()\n"
    )
    setup = wire.Setup(wire.VERSION, "run-1", wire.HandlerSpec("file", "unused.py"), (), str(tmp_path))
    template = TemplateProcess(setup, program=program)
    assert wait([template], 30)
    assert template.receive() == [TemplateExited(-signal.SIGKILL)]
    template.close()


def test_pipes_for_which_descriptors_are_missing_keep_none():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    filler = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            filler.extend(os.dup(0) for _ in range(256))
        for _ in range(3):  # they need four
            os.close(filler.pop())
        with pytest.raises(OSError, match="Too many open files"):
            make_pipes()
        filler.extend(os.dup(0) for _ in range(3))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in filler:
            os.close(descriptor)


def test_pipes_of_the_supervisor_never_block():
    pipes = make_pipes()
    ours, theirs = (pipes.connection.fileno(), pipes.log), pipes.for_worker
    try:
        assert not any(map(os.get_blocking, ours))
        assert all(map(os.get_blocking, theirs))
        assert not any(map(os.get_inheritable, (*ours, *theirs)))
        assert fcntl.fcntl(pipes.log, fcntl.F_GETPIPE_SZ) in (LOG_PIPE_BYTES, 65536)
    finally:
        for descriptor in (pipes.log, *theirs):
            os.close(descriptor)
        pipes.connection.close()


def test_secrets_are_taken_out():
    environ = dict.fromkeys(SECRET_VARIABLES, "sesame") | {"PATH": "/bin", "SUPERVISE_PORT": "1"}
    assert without_secrets(environ) == {"PATH": "/bin", "SUPERVISE_PORT": "1"}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (-signal.SIGKILL, "was killed by SIGKILL; it may have run out of memory"),
        (-signal.SIGTERM, "was killed by SIGTERM"),
        (-signal.SIGSEGV, "crashed with SIGSEGV"),
        (-signal.SIGABRT, "crashed with SIGABRT"),
        (-signal.SIGBUS, "crashed with SIGBUS"),
        (-40, "was killed by signal 40"),
    ],
)
def test_exits_in_words(status, words):
    assert wording.words(process_end(status)) == words
