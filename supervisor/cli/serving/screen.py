"""The dashboard of ``supervise HANDLER``: ``supervise top`` as a child in the same terminal; in the supervisor's process.

A separate process, so that drawing never delays a job. When it exits or dies, event lines take over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import supervisor
from supervisor.dashboard import terminal

CLOSE_S = 2.0
"""Seconds that the screen may take to restore the terminal."""

_PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's, also while this one starts
sys.path.insert(0, sys.argv.pop(1))
from supervisor.__main__ import main
sys.exit(main())
"""


class Screen:
    """The dashboard's child process."""

    def __init__(self, socket: Path, loop: asyncio.AbstractEventLoop, gone: Callable[[], None]) -> None:
        """Show the supervisor that listens on ``socket``, which ``close`` removes; call ``gone`` when the child has exited."""
        self._socket = socket
        self._loop = loop
        self._gone = gone
        self._process: subprocess.Popen[bytes] | None = None
        self._restore: Callable[[], None]
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Start the child.

        Raises:
            OSError: it could not be started.
        """
        root = Path(supervisor.__file__).parent.parent
        command = [sys.executable, "-c", _PROGRAM, str(root), "top", "--url", f"unix://{self._socket}", "--embedded"]
        self._restore = terminal.restorer()
        process = subprocess.Popen(command)
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise
        self._process = process
        self._loop.add_reader(pidfd, self._has_ended, process, pidfd)

    def _has_ended(self, process: subprocess.Popen[bytes], pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        if process.wait() < 0:  # killed, so it could not restore the terminal itself
            self._restore()
        self._ended.set()
        self._gone()

    def pids(self) -> list[int]:
        """Return the child's pid while it runs."""
        return [self._process.pid] if self._process is not None and self._process.returncode is None else []

    async def close(self) -> None:
        """Stop the child, which restores the terminal, and remove the socket."""
        if self._process is not None and not self._ended.is_set():
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._ended.wait(), CLOSE_S)
            except asyncio.TimeoutError:
                self._process.kill()
                await self._ended.wait()
        with contextlib.suppress(FileNotFoundError):
            self._socket.unlink()
