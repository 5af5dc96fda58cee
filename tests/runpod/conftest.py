"""A worker in a fresh interpreter, as the template leaves it before the handler's code: real process, real pipe."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisor.wire import messages as wire
from supervisor.worker.runpod import STANDIN

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 50.0

ENTER = """
import os, sys, time
sys.path.insert(1, {root!r})  # also where it is installed, the checkout is what is tested
{before}
from supervisor.wire import messages as wire
from supervisor.worker import main
handler = wire.HandlerSpec("file", {handler!r})
main.prepare()(main.WorkerStart("gpu0", 3, {fd}, wire.Setup(wire.VERSION, "run", handler, (), {folder!r}), time.monotonic()))
"""


@functools.cache
def real_package() -> str | None:
    """Where the real package is, if this interpreter has it."""
    spec = importlib.util.find_spec("runpod")
    if spec is None or spec.origin is None or spec.origin.startswith(STANDIN):
        return None
    return spec.origin


NURSERY = """
import json, os, socket, sys, time, traceback
sys.path.insert(1, {root!r})
from supervisor.wire import messages as wire
from supervisor.worker import main
from supervisor.worker.runpod import routing
routing.install()
try:
    import runpod, runpod.serverless.utils.rp_cleanup, runpod.serverless.utils.rp_debugger
except ImportError:
    pass
sock = socket.socket(fileno={fd})
def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
while True:
    asked, (conn, log), *_ = socket.recv_fds(sock, 1 << 16, 2)
    asked = json.loads(asked)
    reap()
    pid = os.fork()
    if pid == 0:
        try:
            sock.close()
            os.dup2(log, 1), os.dup2(log, 2), os.close(log)
            os.chdir(asked["folder"])
            os.environ.update(asked["env"])
            handler = wire.HandlerSpec("file", asked["handler"], None, tuple(asked["argv"]))
            setup = wire.Setup(wire.VERSION, "run", handler, (), asked["folder"])
            main.prepare()(main.WorkerStart("gpu0", 3, conn, setup, time.monotonic()))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    os.close(conn), os.close(log)
    pidfd = os.pidfd_open(pid)  # before it is reaped, however soon it ends
    socket.send_fds(sock, [b"forked"], [pidfd])
    os.close(pidfd)
"""


class Connected:
    """The supervisor's side of a worker that speaks through ``conn`` and writes to the file ``log``."""

    def __init__(self, conn: Connection, log: Path) -> None:
        self._conn = conn
        self._log = log
        self._codec = wire.Codec[wire.FromWorker](wire.FromWorker)

    def receive(self) -> Any:
        """The next message."""
        assert self._conn.poll(DEADLINE), f"nothing came; the worker wrote: {self.log()}"
        try:
            return self._codec.decode(self._conn.recv_bytes())
        except (EOFError, ConnectionResetError):
            raise AssertionError(f"the worker ended; it wrote: {self.log()}") from None

    def ready(self) -> wire.Ready:
        """Its first message."""
        message = self.receive()
        assert isinstance(message, wire.Ready), message
        return message

    def send(self, value: Any, job: str = "job", extras: dict[str, Any] | None = None) -> None:
        """Have it begin a job."""
        more = msgspec.json.encode(extras) if extras is not None else None
        self._conn.send_bytes(self._codec.encode(wire.Run(job, msgspec.json.encode(value), more)))

    def job(self, value: Any, job: str = "job", extras: dict[str, Any] | None = None) -> tuple[wire.Done, list[Any]]:
        """Run one job: how it ended, and what came before."""
        self.send(value, job, extras)
        before = []
        while not isinstance(message := self.receive(), wire.Done):
            before.append(message)
        return message, before

    def log(self) -> str:
        """What it has written."""
        return self._log.read_text()


class Worker(Connected):
    """A worker of a fresh interpreter; ``before`` is code that runs ahead of it, as a preload does."""

    def __init__(self, handler: Path, folder: Path, before: str = "", env: dict[str, str] | None = None) -> None:
        conn, theirs = multiprocessing.Pipe(duplex=True)
        super().__init__(conn, folder / "log.txt")
        code = ENTER.format(root=str(ROOT), before=before, handler=str(handler), fd=theirs.fileno(), folder=str(folder))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=worker_env(**(env or {})),
            )
        theirs.close()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(DEADLINE)
        self._conn.close()


class Nursery:
    """Forks workers from a process that has imported the real package, if there is one: fast, and as the template does it."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = NURSERY.format(root=str(ROOT), fd=theirs.fileno())
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=worker_env()
        )
        theirs.close()

    def fork(self, handler: Path, folder: Path, env: dict[str, str], argv: Sequence[str] = ()) -> Forked:
        """A worker that serves ``handler``, with ``folder`` as its current one."""
        conn, theirs = multiprocessing.Pipe(duplex=True)
        log = folder / "log.txt"
        asked = {"handler": str(handler), "folder": str(folder), "env": env, "argv": list(argv)}
        with theirs, log.open("wb") as file:
            socket.send_fds(self._sock, [json.dumps(asked).encode()], [theirs.fileno(), file.fileno()])
            self._sock.settimeout(DEADLINE)
            _, (pidfd,), *_ = socket.recv_fds(self._sock, 32, 1)
        return Forked(conn, log, pidfd)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(DEADLINE)
        self._sock.close()


class Forked(Connected):
    """A worker that a nursery forked."""

    def __init__(self, conn: Connection, log: Path, pidfd: int) -> None:
        super().__init__(conn, log)
        self._pidfd = pidfd

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)
        self._conn.close()


def worker_env(**more: str) -> dict[str, str]:
    """The environment of a worker."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "PYTHON"))}
    own = {
        "SUPERVISE_WORKER_ID": "gpu0-3",
        "RUNPOD_POD_ID": "gpu0-3",
        "RUNPOD_ENDPOINT_ID": "mine",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    return {**env, **own, **more}


StartWorker = Callable[..., Worker]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers; they end with the test."""
    workers = []

    def start(handler: Path, **options: Any) -> Worker:
        workers.append(Worker(handler, tmp_path, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """One for all tests."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def serve(nursery: Nursery, tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Forks workers that are ready, with this test's folder as the current one and ``TMPDIR`` in it."""
    workers: list[Forked] = []

    def serve(handler: Path, argv: Sequence[str] = (), name: str = "temp", **env: str) -> Forked:
        own = tmp_path / name
        own.mkdir()
        workers.append(nursery.fork(handler, tmp_path, {**DOWNLOADS, **env, "TMPDIR": str(own)}, argv))
        return workers[-1]

    yield serve
    for worker in workers:
        worker.close()


#: With these a web server of this machine can be reached: by itself the package fetches only what is public.
DOWNLOADS = {"RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true", "no_proxy": "127.0.0.1,localhost"}


def _archive() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("one.txt", "1")
        archive.writestr("deep/two.txt", "2")
    return packed.getvalue()


SHELF: dict[str, tuple[dict[str, str], bytes]] = {
    "/plain.txt": ({}, b"plain"),
    "/query.jpg?signed=1": ({}, b"signed"),
    "/named": ({"Content-Disposition": 'attachment; filename="cat.PNG"; size=3'}, b"cat"),
    "/renamed.txt": ({"Content-Disposition": "inline; FileName = dog.tar.gz"}, b"dog"),
    "/nameless": ({}, b"nothing"),
    "/bundle": ({"Content-Disposition": "attachment; filename=bundle.zip"}, _archive()),
}


@pytest.fixture(scope="session")
def shelf() -> Iterator[str]:
    """A web server on this machine with the files of ``SHELF``; ``/away`` leads to the first, ``/inside`` to no web address."""

    class Shelf(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            target = {"/away": "/plain.txt", "/inside": "file:///etc/hostname", "/round": "/round"}.get(self.path)
            headers, body = SHELF.get(self.path, ({}, b""))
            self.send_response(302 if target else 200 if self.path in SHELF else 404)
            for name, value in ({"Location": target} if target else headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shelf) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Runs Python in this test's folder with ``PYTHONPATH``, by default as a worker sets it; it must end well."""

    def run(*arguments: str, path: Sequence[str | Path] = (STANDIN,), **env: str) -> subprocess.CompletedProcess[str]:
        env["PYTHONPATH"] = os.pathsep.join(map(str, path))
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=worker_env(**env),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert ended.returncode == 0, ended.stderr
        return ended

    return run


FAKE_PACKAGE = {
    "__init__.py": "from . import serverless\n",
    "serverless/__init__.py": (
        "from . import worker\nfrom .modules.rp_progress import progress_update\n"
        "def start(config):\n    raise SystemExit('the real start ran')\n"
        "def register_fitness_check(func):\n    raise SystemExit('the real check ran')\n"
    ),
    "serverless/worker.py": (
        "from .modules import rp_http, rp_job, rp_scale\n"
        "class Heartbeat:\n    PING_URL = rp_http.WORKER_ID.join(['http://ping/', '/x'])\n"
        "heartbeat = Heartbeat()\n"
    ),
    "serverless/modules/__init__.py": "",
    "serverless/modules/worker_state.py": (
        "import os\nWORKER_ID = os.environ['RUNPOD_POD_ID']\nIS_LOCAL_TEST = 'RUNPOD_WEBHOOK_GET_JOB' not in os.environ\n"
    ),
    "serverless/modules/rp_progress.py": "def progress_update(job, progress):\n    raise SystemExit('the real progress ran')\n",
    "serverless/modules/rp_http.py": (
        "from .worker_state import WORKER_ID\nJOB_DONE_URL = f'http://done/{WORKER_ID}/$ID'\nJOB_STREAM_URL = f'http://stream/{WORKER_ID}'\n"
    ),
    "serverless/modules/rp_job.py": "from .worker_state import WORKER_ID\nJOB_GET_URL = f'http://get/{WORKER_ID}'\n",
    "serverless/utils/__init__.py": (
        "from .rp_download import download_files_from_urls\nfrom .rp_upload import upload_in_memory_object\n"
    ),
    "serverless/utils/rp_cleanup.py": "def clean(folder_list=None):\n    raise SystemExit('the real clean ran')\n",
    "serverless/utils/rp_debugger.py": (
        "class LineTimer:\n    def __init__(self, name):\n        raise SystemExit('a real timer ran')\n"
    ),
    "serverless/utils/rp_download.py": (
        "import os\ndef download_files_from_urls(job_id, urls):\n"
        "    os.makedirs(os.path.abspath(os.path.join('jobs', job_id, 'downloaded_files')), exist_ok=True)\n    return urls\n"
    ),
    "serverless/utils/rp_upload.py": (
        "def _save_to_local_fallback(file_name, source_path=None, file_data=None, directory='local_upload'):\n"
        "    raise SystemExit('the real fallback ran')\n"
        "def upload_in_memory_object(file_name, file_data):\n    return _save_to_local_fallback(file_name, file_data=file_data)\n"
    ),
    "serverless/modules/rp_scale.py": "from .worker_state import IS_LOCAL_TEST\n",
}


@pytest.fixture
def fake_package(tmp_path: Path) -> Path:
    """A folder with a package that has the real one's modules and nothing behind them."""
    folder = tmp_path / "site"
    for name, source in FAKE_PACKAGE.items():
        path = folder / "runpod" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


@pytest.fixture(params=["fake", "real"])
def package(request: pytest.FixtureRequest, fake_package: Path) -> str:
    """Code that makes the package importable in a worker: the fake one everywhere, the real one where it is installed."""
    if request.param == "fake":
        return f"sys.path.insert(1, {str(fake_package)!r})"
    if real_package() is None:
        pytest.skip("the package runpod is not installed")
    return ""


@pytest.fixture
def installed() -> str | None:
    """Where the real package is, if anywhere."""
    return real_package()


@pytest.fixture
def no_package() -> None:
    """Skips where the real package is installed."""
    if (origin := real_package()) is not None:
        pytest.skip(f"the package runpod is installed: {origin}")
