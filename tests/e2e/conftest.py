"""The whole program as a person runs it: ``bin/supervise`` with real processes, asked over HTTP.

Every process of a test inherits a variable whose value is that test's own: whoever has it in its environment when the test is
over was left behind, and the test fails. Handlers wait to be told to go on at FIFOs, so nothing here sleeps.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

from tests import described

ROOT = Path(__file__).parents[2]
CHILDREN = ROOT / "tests/children"
MARK = "SUPERVISE_TEST_MARK"

DEADLINE_S = 30.0
"""How long anything that must happen may take on a busy machine."""

WHOLE_RUN_S = 40.0
"""How long a run of the program that ends by itself may take there; what stops a test that hangs comes later."""

GONE_S = 5.0
"""How long a process may outlive the supervisor."""

POLL_S = 0.005


class Answer(msgspec.Struct, frozen=True):
    """What the server answered; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        body = self.json
        assert list(body) == ["error"], body
        return str(body["error"])


class Output:
    """The lines of a pipe, as they come."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.lines: list[str] = []
        self.at_end = False
        self._pipe = pipe
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._pipe:
            for line in self._pipe:
                with self._changed:
                    self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self.at_end = True
            self._changed.notify_all()

    def wait_for(self, pattern: str, start: int = 0) -> re.Match[str]:
        """The first line from number ``start`` on in which ``pattern`` is found."""
        until = time.monotonic() + DEADLINE_S
        seen = start
        with self._changed:
            while True:
                for line in self.lines[seen:]:
                    seen += 1
                    if found := re.search(pattern, line):
                        return found
                left = until - time.monotonic()
                if self.at_end or left <= 0:
                    raise AssertionError(f"no line with {pattern!r} in:\n{self}")
                self._changed.wait(left)

    def whole(self) -> str:
        """All of it, once it is at its end."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.at_end, DEADLINE_S), f"it does not end:\n{self}"
        return str(self)

    def __str__(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


class Client:
    """A client of the API at ``port``."""

    port = 0

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def ask(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request on a connection of its own; ``body`` is bytes, or what becomes JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, data, {**self.headers, **(headers or {})})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            assert len(headers) == len(response.getheaders()), f"a name stands twice: {response.getheaders()}"
            answer = Answer(response.status, headers, response.read())
            fault = described.fault(method, path, answer.status, headers, answer.body)
            assert fault is None, fault
            return answer
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON of an answer that must be 200."""
        return self._ok(self.ask("GET", path))

    def post(self, path: str, body: object = None) -> Any:
        """The JSON of an answer that must be 200."""
        return self._ok(self.ask("POST", path, body))

    @staticmethod
    def _ok(answer: Answer) -> Any:
        assert answer.status == 200, answer
        return answer.json

    def run(self, given: object = None, **options: object) -> str:
        """Submit a job; its id."""
        answer = self.post("/run", {"input": given, **options})
        assert answer["status"] in ("IN_QUEUE", "COMPLETED"), answer
        return str(answer["id"])

    def runsync(self, given: object = None, **options: object) -> Any:
        """The final status of a job with that input."""
        return self.ended(self.post("/runsync", {"input": given, **options})["id"])

    def status(self, job: str) -> Any:
        return self.get(f"/status/{job}")

    def started(self, job: str) -> str:
        """The slot in which a job runs that must start; or ran, if it has ended."""
        worker: str = self.until(lambda: self.status(job).get("workerId"))
        return worker.partition("-")[0]

    def ended(self, job: str) -> Any:
        """The status of a job that must end."""
        status = self.get(f"/status-sync/{job}?wait={DEADLINE_S * 1000:.0f}")
        assert status["status"] not in ("IN_QUEUE", "IN_PROGRESS"), (status, self.get("/workers"), str(self))
        return status

    def workers(self) -> dict[str, Any]:
        """What ``/workers`` says, by slot."""
        return {worker["slot"]: worker for worker in self.get("/workers")}

    def until(self, condition: Callable[[], Any]) -> Any:
        """What ``condition`` gives once that is true; it asks the server, which has no way to say when something changes."""
        until = time.monotonic() + DEADLINE_S
        pause = threading.Event()
        while not (value := condition()):
            assert time.monotonic() < until, f"it never happened\n{self}"
            pause.wait(POLL_S)
        return value


class Supervise(Client):
    """One run of the program, and a client of it."""

    def __init__(self, command: list[str], folder: Path, environ: Mapping[str, str]) -> None:
        super().__init__()
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.stdout = Output(self._process.stdout)
        self.stderr = Output(self._process.stderr)

    @property
    def pid(self) -> int:
        return self._process.pid

    def listening(self) -> Supervise:
        """Once it takes requests."""
        self.port = int(self.stderr.wait_for(r"^listening on http://\S+:(\d+)$")[1])
        return self

    def ready(self, *slots: str) -> Supervise:
        """Once a worker is ready in each of ``slots`` (none: in any)."""
        self.listening()
        for slot in slots or (r"\w+",):
            self.stderr.wait_for(rf"^{slot}: ready ")
        return self

    def wait_for_line(self, pattern: str, start: int = 0) -> re.Match[str]:
        return self.stderr.wait_for(pattern, start)

    def __str__(self) -> str:
        return str(self.stderr)

    # --- its end

    def kill(self, signum: int = signal.SIGKILL) -> None:
        self._process.send_signal(signum)

    def wait(self) -> int:
        """Its exit code (``-N`` for signal N), once it has ended."""
        try:
            return self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.stderr}") from None

    def stop(self) -> int:
        """End it as a service manager would; its exit code."""
        self.kill(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Runs:
    """Starts the program; ``folder`` is its current folder, its store, its locks and its temporary files."""

    def __init__(self, folder: Path, compiled: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.temporary = Path(tempfile.mkdtemp(prefix="e2e-"))  # a short name: it will hold a socket
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SUPERVISE_", "RUNPOD_"))},
            MARK: self.mark,
            "TMPDIR": str(self.temporary),
            "PYTHONPYCACHEPREFIX": str(compiled),  # compiled once for all tests, as it is for a user
        }
        for name in ("CUDA_VISIBLE_DEVICES", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONUNBUFFERED"):
            self.environ.pop(name, None)
        self._runs: list[Supervise] = []

    def command(self, *arguments: object) -> list[str]:
        """The command line, on a port, a store and locks of this test's own."""
        own = ["--store", self.folder / "store.db", "--lock-dir", self.folder / "locks", "--port", "0"]
        words = [*own, *arguments]
        if arguments[:1] == ("serve",):
            words = ["serve", *own, *arguments[1:]]
        return [sys.executable, str(ROOT / "bin/supervise"), *map(str, words)]

    def __call__(self, *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Supervise:
        """Start it and wait for nothing."""
        return self.start(self.command(*arguments, "--no-dashboard"), env, cwd)

    def start(self, command: list[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Supervise:
        """Start that command."""
        run = Supervise(command, cwd or self.folder, {**self.environ, **(env or {})})
        self._runs.append(run)
        return run

    def to_the_end(self, *arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run it until it ends by itself."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**self.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WHOLE_RUN_S,
        )

    @staticmethod
    def client(port: int) -> Client:
        """A client of a program that was started otherwise."""
        client = Client()
        client.port = port
        return client

    def write(self, name: str, source: str) -> Path:
        """Write a handler file, all at once: a worker may load it at any moment."""
        path = self.folder / name
        half = path.with_name(f".half-{name}")
        half.write_text(source)
        return half.replace(path)

    def processes(self) -> dict[int, str]:
        """The command lines of all living processes that any run of this test has started."""
        wanted = f"{MARK}={self.mark}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def all_gone(self) -> None:
        """Within that time no process is left."""
        self.come_to(0, GONE_S)

    def come_to(self, number: int, within: float = DEADLINE_S) -> None:
        """Within that time there are so many processes."""
        until = time.monotonic() + within
        pause = threading.Event()
        while len(left := self.processes()) != number:
            assert time.monotonic() < until, f"after {within:g} s there are not {number} processes but {left}"
            pause.wait(POLL_S)

    def close(self) -> None:
        for run in self._runs:
            run.close()
        try:
            self.all_gone()
            assert not list(self.temporary.iterdir()), "temporary files are left"
        finally:
            shutil.rmtree(self.temporary)
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for run in self._runs:
                run.stdout.whole()
                run.stderr.whole()


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port of 127.0.0.1 that this test may listen on, and to which the system gives nobody else while the test runs.

    It is bound, and nobody listens: who binds it by its number, with ``SO_REUSEADDR`` as servers do, gets it all the same.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def supervise(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Starts the program, and sees to it that nothing is left of it when the test is over."""
    base = tmp_path_factory.getbasetemp()
    runs = Runs(tmp_path, (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled")
    yield runs
    runs.close()


class Gate:
    """A FIFO at which a handler waits: ``open(path).read()`` returns once the test opens the gate."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd: int | None = None

    def reached(self) -> None:
        """Wait until a handler stands at the gate; it stays there."""
        until = time.monotonic() + DEADLINE_S
        pause = threading.Event()
        while self._fd is None:
            with contextlib.suppress(OSError):  # nobody reads: nobody is there yet
                self._fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
                return
            assert time.monotonic() < until, f"nobody came to {self.path}"
            pause.wait(POLL_S)

    def open(self) -> None:
        """Let the handler that stands at the gate, or comes to it, go on."""
        self.reached()
        self.close()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@pytest.fixture
def make_gate(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """Makes gates, shut."""
    gates: list[Gate] = []

    def make() -> Gate:
        gates.append(Gate(tmp_path / f"gate{len(gates)}"))
        return gates[-1]

    yield make
    for gate in gates:
        gate.close()
