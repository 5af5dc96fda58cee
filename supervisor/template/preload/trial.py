"""A trial: a fork of the template that imports ahead of it and reports the result, without side effects on the template.

The class is the template's side; ``_run`` is the trial process.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from supervisor.host.processes import children_of, kill, kill_with_group
from supervisor.template import child
from supervisor.template.preload import safety
from supervisor.template.preload.imports import Import

_REASON_CHARACTERS = 500
_VERDICT_BYTES = 64 * 1024
_END_S = 2.0
"""Seconds to wait for killed processes: one that the kernel cannot end must not hold up the workers."""


class Trial:
    """Imports ``imports`` in order until one fails; call ``verdict`` once per import."""

    def __init__(self, imports: Sequence[Import], handlers_folder: Path) -> None:
        """Fork the trial process.

        Raises:
            OSError: no process can be forked.
        """
        template = os.getpid()
        self._before = frozenset(children_of(template))
        self._verdicts, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = child.fork()
        if self._pid == 0:
            _run(imports, handlers_folder, template, theirs)
        theirs.close()

    def verdict(self, timeout: float) -> str | None:
        """Return why the next import is not safe, None if it is. Waits at most ``timeout`` seconds."""
        self._verdicts.settimeout(timeout)
        try:
            verdict = self._verdicts.recv(_VERDICT_BYTES)
        except TimeoutError:
            return f"the import took longer than {timeout:g} s (--preload-timeout)"
        return msgspec.json.decode(verdict, type=str | None) if verdict else self._how_it_ended()

    def close(self) -> None:
        """Kill the trial process and its descendants."""
        self._verdicts.close()
        deadline = time.monotonic() + _END_S
        while (left := set(children_of(os.getpid())) - self._before) and time.monotonic() < deadline:
            for pid in left:
                kill_with_group(pid)
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.001)

    def _how_it_ended(self) -> str:
        kill(self._pid)  # it may be alive: it closed the socket
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if status >= 0:
            return f"the import ended its process with exit code {status}"
        return f"the import was killed by {signal.Signals(-status).name}"


def perform(wanted: Import) -> None:
    """Import ``wanted`` as the statement does. A name may be a submodule or a lazily loaded attribute."""
    module = importlib.import_module(wanted.module)
    for name in wanted.names:
        if not hasattr(module, name):
            importlib.import_module(f"{wanted.module}.{name}")


def reason_of(error: BaseException) -> str:
    """Describe ``error`` in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_CHARACTERS]


def _run(imports: Sequence[Import], handlers_folder: Path, template: int, verdicts: socket.socket) -> NoReturn:
    try:
        child.die_with(template)
        os.setsid()
        # The template prints the same when it imports the modules itself.
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        before = safety.snapshot()
        for wanted in imports:
            why = _try(wanted, before, handlers_folder)
            verdicts.send(msgspec.json.encode(why and why.encode(errors="replace").decode()))
    finally:
        os._exit(0)


def _try(wanted: Import, before: safety.ProcessState, handlers_folder: Path) -> str | None:
    try:
        perform(wanted)
    except BaseException as error:  # noqa: BLE001 - any code runs here, and some modules call sys.exit
        return reason_of(error)
    sys.stdout.flush()
    return safety.fault(before, handlers_folder)
