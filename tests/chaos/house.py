"""A house: one ``bin/supervise`` on one store, started again whenever it is killed; real processes, under the chaos program."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from supervisor.host.processes import children_of, processes_with
from tests.chaos.journal import Journal

ROOT = Path(__file__).parents[2]
MARK = "CHAOS_LIFE"

START_S = 30.0
"""How long a start may take on a busy machine, from the command to the line that says where it listens."""

GONE_S = 5.0
"""How long a process may outlive the supervisor."""

_LOOK_S = 0.1


class StartError(Exception):
    """A supervisor did not come up: there is nothing to go on with."""


class Life:
    """One process of the supervisor, from its start to its end."""

    def __init__(self, house: str, number: int, mark: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.house = house
        self.number = number
        self.mark = f"{MARK}={mark}"
        self.process = process
        self.port = 0
        self.ready = threading.Event()
        self.listening = threading.Event()
        self.end_wanted = False
        self.started = time.monotonic()
        self.log = log
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def template(self) -> int:
        """The template's pid; 0: there is none now."""
        return self._child(b"supervisor/template/main.py")

    def nvml_reader(self) -> int:
        """The pid of the process that reads NVML; 0: there is none now."""
        return self._child(b"supervisor/gpu/reader.py")

    def workers(self) -> list[int]:
        """The pids of what the template has forked."""
        return children_of(template) if (template := self.template()) else []

    def left(self) -> list[int]:
        """The living processes that it has started, itself too."""
        return processes_with(self.mark.encode()).found

    def _child(self, words: bytes) -> int:
        for pid in children_of(self.process.pid):
            with contextlib.suppress(OSError):
                if words in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return 0

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as pipe, open(self.log, "ab") as log:
            for line in pipe:
                log.write(line)
                if not self.listening.is_set() and (found := re.match(rb"listening on http://\S+:(\d+)$", line)):
                    self.port = int(found[1])
                    self.listening.set()
                elif not self.ready.is_set() and re.match(rb"\w+: ready ", line):
                    self.ready.set()
        self.listening.set()
        self.ready.set()


class House:
    """Starts, ends and kills the supervisor of one store; says of each death what was left of it."""

    def __init__(
        self,
        name: str,
        handler: Path,
        folder: Path,
        store: Path,
        options: Sequence[object],
        env: Mapping[str, str],
        journal: Journal,
        files: int = 0,
    ) -> None:
        """Serve ``handler`` with ``options``; each process may have ``files`` open (0: as many as this one)."""
        self.name = name
        self.store = store
        self.logs = folder / "logs"
        self.lives: list[Life] = []
        self.slowest_gone = 0.0
        self._files = files
        self._journal = journal
        self._mark = f"{folder.name}-{name}"
        self._command = [
            sys.executable,
            str(ROOT / "bin/supervise"),
            str(handler),
            "--store",
            str(self.store),
            "--port",
            "0",
        ]
        self._command += ["--no-dashboard", *map(str, options)]
        self._folder = folder
        self._env = dict(env)
        self._watchers: list[threading.Thread] = []
        self._lock = threading.RLock()

    @property
    def life(self) -> Life:
        return self.lives[-1]

    def port(self) -> int:
        """Where it listens; 0: it does not now."""
        return self.life.port if self.lives and self.life.alive else 0

    # --- its life

    def start(self) -> Life:
        """Start it and wait until it listens."""
        with self._lock:
            number = len(self.lives) + 1
            mark = f"{self._mark}-{number}"
            process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={**self._env, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            if self._files:
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (self._files, self._files))
            life = Life(self.name, number, mark, process, self.logs / f"{self.name}-{number}.log")
            self.lives.append(life)
            self._journal.deed(self.name, "started", f"life {number}", process.pid)
            self._watch(life)
            if not life.listening.wait(START_S) or not life.port:
                raise StartError(f"{self.name}: life {number} did not listen; {life.log} says why")
            return life

    def stop(self, signum: int = signal.SIGTERM, patience: float = 20.0) -> int:
        """End it; its exit code, ``-N`` for signal N."""
        with self._lock:
            life = self.life
            life.end_wanted = True
            self._journal.deed(self.name, signal.Signals(signum).name, f"life {life.number}", life.process.pid)
            life.process.send_signal(signum)
            try:
                code = life.process.wait(patience)
            except subprocess.TimeoutExpired:
                self._journal.fault(f"{self.name}: life {life.number} did not end within {patience:g} s of {signum!r}")
                life.process.kill()
                code = life.process.wait()
            if signum == signal.SIGTERM and code != 0:
                self._journal.fault(f"{self.name}: life {life.number} exited with {code} after SIGTERM")
            self._journal.deed(self.name, "ended", f"life {life.number}, code {code}", life.process.pid)
            return code

    def close(self) -> None:
        """Wait until it is known what each death left, and end that."""
        for watcher in self._watchers:
            watcher.join()
        for life in self.lives:
            for pid in life.left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            life.reader.join(5)

    def _watch(self, life: Life) -> None:
        watcher = threading.Thread(target=self._see_to_its_end, args=(life,), daemon=True)
        self._watchers.append(watcher)
        watcher.start()

    def _see_to_its_end(self, life: Life) -> None:
        code = life.process.wait()
        ended = time.monotonic()
        if not life.end_wanted:
            self._journal.fault(f"{self.name}: life {life.number} ended by itself, code {code}")
            self._journal.deed(self.name, "ended by itself", f"life {life.number}, code {code}", life.process.pid)
            if life.port:
                threading.Thread(target=self.start, daemon=True).start()
        while (left := life.left()) and time.monotonic() < ended + GONE_S:
            time.sleep(_LOOK_S)
        took = time.monotonic() - ended
        self.slowest_gone = max(self.slowest_gone, took)
        if left:
            words = {pid: _command_of(pid) for pid in left}
            self._journal.fault(
                f"{self.name}: {took:.1f} s after life {life.number} ended there are still {json.dumps(words)}"
            )


def _command_of(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return "gone meanwhile"
    return f"{words}({stat[stat.rindex(')') + 2 :][:12]})"
