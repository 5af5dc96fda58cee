"""The dashboard of ``supervise HANDLER`` on a real terminal: what it shows, and that it gives the terminal back."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Gate, Runs

DEADLINE_S = 20.0
TAKES_THE_TERMINAL = "import os, sys; os.open(os.ttyname(0), os.O_RDWR); os.execv(sys.argv[1], sys.argv[1:])"
"""A session's leader that opens a terminal gets it as its controlling one: Ctrl-C typed there is a signal to it."""

CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9])")
HANDLER = """
from supervisor import serverless

def handler(job):
    serverless.progress_update(job, {"percent": 40})
    print("a line of the handler")
    return open(job["input"]).read()

serverless.start({"handler": handler})
"""


class Screen:
    """A terminal of 80 by 24 and the program on it."""

    def __init__(self, supervise: Runs, *arguments: object, **env: str) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._attributes = termios.tcgetattr(self._slave)
        self._raw = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKES_THE_TERMINAL, *supervise.command(*arguments)],
            cwd=supervise.folder,
            env={**supervise.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", **env},
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
        )

    def shows(self, pattern: str) -> re.Match[str]:
        """Read until ``pattern`` is found in what was painted since the last thing that was waited for."""
        until = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, CONTROL.sub("", self._raw.decode("utf-8", "ignore")))):
            self._read(until, f"{pattern!r} is not shown")
        return found

    def press(self, keys: str) -> None:
        """Type; what is waited for from now on is what comes afterwards."""
        self._raw = b""
        os.write(self._master, keys.encode())

    def ends(self) -> int:
        """The exit code, once the program has ended."""
        until = time.monotonic() + DEADLINE_S
        with open(os.pidfd_open(self.process.pid), "rb") as life:
            while True:
                waits = [self._master, life.fileno()]
                ready, _, _ = select.select(waits, [], [], max(0.0, until - time.monotonic()))
                assert ready, f"it does not end:\n{self._raw!r}"
                if self._master not in ready:
                    return self.process.wait()
                self._read(until, "it does not end")

    def until_given_back(self) -> None:
        """Until the terminal is as it was: its own screen left, the cursor shown, its attributes restored."""
        until = time.monotonic() + DEADLINE_S
        while (
            self._raw.rfind(b"\x1b[?1049l") <= self._raw.rfind(b"\x1b[?1049h")
            or self._raw.rfind(b"\x1b[?25h") <= self._raw.rfind(b"\x1b[?25l")
            or termios.tcgetattr(self._slave) != self._attributes
        ):
            self._read(until, "the terminal is not given back")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _read(self, until: float, complaint: str) -> None:
        ready, _, _ = select.select([self._master], [], [], max(0.0, until - time.monotonic()))
        assert ready, f"{complaint}:\n{CONTROL.sub('', self._raw.decode('utf-8', 'ignore'))}"
        self._raw += os.read(self._master, 65536)


@pytest.fixture
def show(supervise: Runs) -> Iterator[Callable[..., Screen]]:
    """Starts the program on a terminal."""
    screens: list[Screen] = []

    def start(*arguments: object, **env: str) -> Screen:
        screens.append(Screen(supervise, *arguments, **env))
        return screens[-1]

    yield start
    for screen in screens:
        screen.close()


def test_it_shows_what_happens_and_ctrl_c_drains(
    supervise: Runs, show: Callable[..., Screen], make_gate: Callable[[], Gate]
) -> None:
    screen = show(supervise.write("painted.py", HANDLER), "--simulate-gpus", 2)
    port = int(screen.shows(r"listening on http://127.0.0.1:(\d+)")[1])
    for pattern in ("painted", "gpu0", "gpu1", "idle"):
        screen.shows(pattern)
    gate = make_gate()
    client = supervise.client(port)
    job = client.run(gate.path)
    gate.reached()
    screen.shows("busy")
    screen.shows("40 ?%")
    screen.shows("a line of the handler")

    screen.press("\x03")
    screen.shows("draining")
    gate.open()
    assert screen.ends() == 0
    screen.until_given_back()
    supervise.all_gone()
    run = supervise("painted.py", "--gpus", "none").listening()
    assert run.status(job)["status"] == "COMPLETED"
    assert run.stop() == 0


def test_a_second_ctrl_c(supervise: Runs, show: Callable[..., Screen], make_gate: Callable[[], Gate]) -> None:
    screen = show(supervise.write("painted.py", HANDLER), "--gpus", "none")
    client = supervise.client(int(screen.shows(r"listening on http://127.0.0.1:(\d+)")[1]))
    screen.shows("idle")
    gate = make_gate()
    client.run(gate.path)
    gate.reached()
    screen.press("\x03")
    screen.shows("draining")
    screen.press("\x03")
    assert screen.ends() == 130
    screen.until_given_back()


def test_q_is_a_ctrl_c(supervise: Runs, show: Callable[..., Screen]) -> None:
    screen = show(supervise.write("painted.py", HANDLER), "--gpus", "none")
    screen.shows("idle")
    screen.press("q")
    assert screen.ends() == 0
    screen.until_given_back()


def test_the_supervisor_is_killed(supervise: Runs, show: Callable[..., Screen]) -> None:
    screen = show(supervise.write("painted.py", HANDLER), "--gpus", "none")
    screen.shows("idle")
    screen.process.kill()
    assert screen.ends() == -signal.SIGKILL
    screen.until_given_back()
    supervise.all_gone()


def test_the_screen_is_killed(supervise: Runs, show: Callable[..., Screen], make_gate: Callable[[], Gate]) -> None:
    screen = show(supervise.write("painted.py", HANDLER), "--gpus", "none")
    client = supervise.client(int(screen.shows(r"listening on http://127.0.0.1:(\d+)")[1]))
    screen.shows("idle")
    (pid,) = (pid for pid, command in supervise.processes().items() if "--embedded" in command)
    os.kill(pid, signal.SIGKILL)
    screen.until_given_back()
    gate = make_gate()
    job = client.run(gate.path)
    gate.open()
    assert client.ended(job)["status"] == "COMPLETED"
    screen.shows(rf"job {job} COMPLETED")
    screen.press("\x03")
    assert screen.ends() == 0


def test_where_no_socket_can_be_there_are_lines(supervise: Runs, show: Callable[..., Screen]) -> None:
    folder = supervise.temporary / ("long" * 25)
    folder.mkdir()
    screen = show(supervise.write("painted.py", HANDLER), "--gpus", "none", TMPDIR=str(folder))
    screen.shows("no dashboard: ")
    screen.shows("cpu0: ready")
    screen.press("\x03")
    assert screen.ends() == 0
    folder.rmdir()
