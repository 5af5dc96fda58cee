"""Snapshots as real as they come, a fake supervisor on a Unix socket, and a terminal that a program runs on.

The snapshots come from factories, so that a test names only what it is about.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import json
import os
import pty
import queue
import re
import select
import selectors
import socketserver
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisor.protocol import views as s

NOW = 1_790_000_000_000
"""The moment of every snapshot made here, in ms since 1970."""

PROGRESS: list[Any] = [
    {"percent": 62, "message": "denoising"},
    "step 7/20",
    {"step": 3, "of": 8, "stage": "upscale"},
    {"tokens": 1412, "eta": 12.5},
]


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def refresh(n: int = 0, **changes: Any) -> s.RefreshView:
    view = s.RefreshView(NOW - 4000 - 977 * n, "result", 1.9, 1.2 + n / 10, 1.0, 4.1 + n / 10, freed_mib=812 + 97 * n)
    return msgspec.structs.replace(view, **changes)


def worker(n: int, gpu: bool = True, **changes: Any) -> s.WorkerView:
    slot, busy = (f"gpu{n}" if gpu else f"cpu{n}"), n % 4 != 1
    view = s.WorkerView(
        id=f"{slot}-{3 + n}",
        slot=slot,
        gpus=(n,) if gpu else (),
        state="busy" if busy else "idle",
        pid=48213 + 19 * n,
        generation=3 + n,
        jobs=128 + 7 * n,
        refreshes=2 + n,
        restarts=n // 3,
        running=(f"d3f0a1c2-4b7e-4d1a-9c55-0e2f7a61b0{n:02}",) if busy else (),
        gpu_memory_mib=(8120 + 512 * n if busy else 418) if gpu else None,
        last_refresh=refresh(n) if gpu else refresh(n, freed_mib=None),
    )
    return msgspec.structs.replace(view, **changes)


def gpu(n: int, **changes: Any) -> s.GpuView:
    ours = s.GpuProcessView(48213 + 19 * n, 8120 + 512 * n, "python3", slot=f"gpu{n}")
    view = s.GpuView(
        index=n,
        uuid=f"GPU-8f2c61d0-0000-4000-8000-{n:012}",
        name="NVIDIA H200",
        slots=(f"gpu{n}",),
        memory_used_mib=8940 + 23_000 * (n % 6),
        memory_total_mib=143_771,
        utilization=(97, 0, 64, 31)[n % 4],
        temperature_c=61 - n,
        power_w=412.6 - 40 * (n % 4),
        processes=(ours, s.GpuProcessView(3121, 1204, "/usr/bin/jupyter-lab")) if n == 1 else (ours,),
    )
    return msgspec.structs.replace(view, **changes)


def ended(n: int, **changes: Any) -> s.EndedJobView:
    status, error = "COMPLETED", None
    if n == 2:
        status, error = "FAILED", "worker gpu1 (pid 48101) was killed by SIGKILL; it may have run out of memory"
    elif n % 7 == 4:
        status, error = "TIMED_OUT", "executionTimeout of 60000 ms passed"
    elif n % 7 == 5:
        status = "CANCELLED"
    slot = f"gpu{n % 2}"
    view = s.EndedJobView(
        id=f"{0xA77E10 + 7919 * n:08x}-1c2d-4e5f-8a9b-5d6c7e8f9a{n:02}",
        status=status,
        ended_at=NOW - 640 - 2350 * n,
        delay_time=3 + 11 * n,
        execution_time=None if status == "CANCELLED" else 1840 + 133 * n,
        worker_id=f"{slot}-{3 + n % 2}",
        error=error,
    )
    return msgspec.structs.replace(view, **changes)


def lines(slots: tuple[str, ...], jobs: dict[str, str], many: int) -> tuple[s.LogLine, ...]:
    said = ("loaded 512x512 batch", "sampler euler, cfg 7.5", "step 7/20  1.31 it/s", "saved /tmp/out.png (2.1 MiB)")
    found = []
    for n in range(many):
        at = NOW - 700 * (many - n)
        if n % 9 == 4:
            found.append(s.LogLine(at, f"{slots[0]}: refreshed in 4.1 ms"))
        else:
            slot = slots[n % len(slots)]
            found.append(s.LogLine(at, said[n % len(said)], slot, jobs.get(slot)))
    return tuple(found)


def make(gpus: int = 2, slots: int | None = None, /, **changes: Any) -> s.Snapshot:
    """A supervisor with ``gpus`` GPUs and a slot on each; with none, ``slots`` CPU slots."""
    workers = tuple(worker(n, bool(gpus)) for n in range(gpus or slots or 2))
    running = tuple(
        s.RunningJobView(job, view.slot, NOW - 1300 - 900 * n, 1, raw(PROGRESS[n % len(PROGRESS)]))
        for n, view in enumerate(workers)
        for job in view.running
    )
    view = s.Snapshot(
        at=NOW,
        version="0.1.0",
        endpoint_id="my_handler",
        handler="handlers/my_handler.py",
        pid=48190,
        url="http://127.0.0.1:8900",
        draining=False,
        jobs=s.JobCounts(1204, 3, len(running), 5, 2),
        workers=workers,
        gpus=tuple(gpu(n) for n in range(gpus)),
        running=running,
        ended=tuple(ended(n) for n in range(20)),
        log=lines(tuple(w.slot for w in workers), {w.slot: w.running[0] for w in workers if w.running}, 40),
        stats=s.Stats(11_532.4, 1214, 1207, 12.34, 3.2, 41.0, 1820.0, 3411.0),
        notice=None if gpus else "no GPU on this machine: 2 CPU slots",
    )
    return msgspec.structs.replace(view, **changes)


@pytest.fixture
def snapshot() -> Callable[..., s.Snapshot]:
    return make


class FakeSupervisor:
    """Answers ``/snapshot`` with what it is told, on a Unix socket; hears refreshes; may fall silent or refuse."""

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self.shown = make()
        self.refreshed: queue.Queue[str] = queue.Queue()
        self.refusal: tuple[int, str] | None = None
        self.answering = threading.Event()
        self.answering.set()
        self._server = _UnixServer(str(path), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def show(self, **changes: Any) -> None:
        self.shown = msgspec.structs.replace(self.shown, **changes)

    def close(self) -> None:
        self.answering.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False


def _handler(supervisor: FakeSupervisor) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def address_string(self) -> str:
            return "a client"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            supervisor.answering.wait(50)
            if supervisor.refusal is not None:
                self.answer(supervisor.refusal[0], {"error": supervisor.refusal[1]})
            elif self.path == "/snapshot":
                self.answer(200, supervisor.shown)
            else:
                self.answer(404, {"error": "no such path"})

        def do_POST(self) -> None:
            supervisor.refreshed.put(self.path)
            self.answer(200, {"slot": self.path.split("/")[2], "status": "refreshing"})

        def answer(self, status: int, body: Any) -> None:
            data = msgspec.json.encode(body)
            with contextlib.suppress(BrokenPipeError):  # a screen that has ended
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

    return Handler


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[FakeSupervisor]:
    fake = FakeSupervisor(tmp_path / "s.sock")
    yield fake
    fake.close()


_TAKE_TERMINAL = "import os, sys; os.open(os.ttyname(0), os.O_RDWR)\n"
"""A session's leader that opens a terminal gets it as its controlling one."""

RUN_TOP = "from supervisor.cli.app import main; sys.exit(main(['top', *sys.argv[1:]]))"

_PICTURE_END = re.compile(rb"(?<=\x1b\[\?2026l)")
_CONTROL = re.compile(rb"\x1b\[(\?[0-9]+[hl]|[0-9;]*[A-Za-z])")


class Terminal:
    """A terminal with one program on it: what it painted, line by line, and its keys."""

    def __init__(self, program: str, *arguments: str, size: tuple[int, int] = (80, 24), **environment: str) -> None:
        self._master, slave = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.rows: dict[int, str] = {}
        self.alternate = False
        self.cursor = True
        self.whole = True
        self._unseen: list[bytes] = []
        self._rest = b""
        self._row = 1
        self.raw = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL + program, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )

    @property
    def text(self) -> str:
        return "\n".join(self.rows[row] for row in sorted(self.rows))

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, seen: Callable[[Terminal], bool], seconds: float = 30.0) -> None:
        """Read until ``seen`` in a whole picture or the deadline. Each picture is looked at, also if several came at once."""
        deadline = time.monotonic() + seconds
        while not (self.whole and seen(self)):
            if not self._unseen:
                left = deadline - time.monotonic()
                ready, _, _ = select.select([self._master], [], [], max(left, 0))
                assert ready, f"not seen within {seconds} s; the screen shows:\n{self.text}"
                self._unseen = _PICTURE_END.split(os.read(self._master, 65536))
            self._feed(self._unseen.pop(0))

    def until_shows(self, text: str) -> None:
        self.until(lambda terminal: text in terminal.text)

    def ends(self, seconds: float = 30.0) -> int:
        """The exit code, everything read."""
        while self._unseen:
            self._feed(self._unseen.pop(0))
        with selectors.DefaultSelector() as ready, open(os.pidfd_open(self.process.pid), "rb") as life:
            ready.register(life, selectors.EVENT_READ)
            ready.register(self._master, selectors.EVENT_READ)
            deadline = time.monotonic() + seconds
            while True:
                events = ready.select(max(deadline - time.monotonic(), 0))
                assert events, f"did not end within {seconds} s; the screen shows:\n{self.text}"
                files = [key.fileobj for key, _ in events]
                if self._master in files:
                    self._feed(os.read(self._master, 65536))
                elif life in files:
                    return self.process.wait(5)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(5)
        os.close(self._master)
        os.close(self._slave)

    def _feed(self, data: bytes) -> None:
        self.raw += data
        data = self._rest + data
        at = 0
        for match in _CONTROL.finditer(data):
            self._put(data[at : match.start()])
            self._control(match[1].decode())
            at = match.end()
        tail = data[at:]
        cut = tail.rfind(b"\x1b")
        whole = tail if cut < 0 else tail[:cut]
        while whole and whole[-1] >= 0x80 and whole.decode("utf-8", "ignore").encode() != whole:
            whole = whole[:-1]
        self._put(whole)
        self._rest = tail[len(whole) :]

    def _control(self, code: str) -> None:
        if code.endswith("H"):
            self._row = int(code[:-1].partition(";")[0])
            self.rows[self._row] = ""
        elif code == "2J":
            self.rows = {}
        elif code in ("?1049h", "?1049l"):
            self.alternate = code.endswith("h")
            self.rows = {}
        elif code in ("?2026h", "?2026l"):
            self.whole = code.endswith("l")
        elif code in ("?25h", "?25l"):
            self.cursor = code.endswith("h")

    def _put(self, data: bytes) -> None:
        for n, text in enumerate(data.decode().split("\r\n")):
            if n:
                self._row += 1
            if text:
                self.rows[self._row] = self.rows.get(self._row, "") + text


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts a program on a terminal of its own."""
    opened = []

    def start(program: str, *arguments: str, **options: Any) -> Terminal:
        opened.append(Terminal(program, *arguments, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def top(terminal: Callable[..., Terminal], supervisor: FakeSupervisor) -> Callable[..., Terminal]:
    """Starts `supervise top` on a terminal of its own, for the fake supervisor."""

    def start(*arguments: str, **options: Any) -> Terminal:
        return terminal(RUN_TOP, "--url", supervisor.url, *arguments, **options)

    return start
