"""A worker in a fresh interpreter, as the template leaves it before the handler's code: real process, real pipe."""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisor import wire
from supervisor.worker.runpod import STANDIN

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 20.0

ENTER = """
import os, sys, time
sys.path.insert(1, {root!r})  # also where it is installed, the checkout is what is tested
{before}
from supervisor import wire
from supervisor.worker import main
handler = wire.HandlerSpec("file", {handler!r})
main.enter(main.WorkerStart("gpu0", 3, {fd}, wire.Setup(wire.VERSION, "run", handler, (), {folder!r}), time.monotonic()))
"""


@functools.cache
def real_package() -> str | None:
    """Where the real package is, if this interpreter has it."""
    spec = importlib.util.find_spec("runpod")
    if spec is None or spec.origin is None or spec.origin.startswith(STANDIN):
        return None
    return spec.origin


class Worker:
    """The supervisor's side of a worker that serves ``handler``; ``before`` is code that runs ahead of it, as a preload does."""

    def __init__(self, handler: Path, folder: Path, before: str = "", env: dict[str, str] | None = None) -> None:
        self._log = folder / "log.txt"
        self._codec = wire.Codec[wire.FromWorker](wire.FromWorker)
        self._conn, theirs = multiprocessing.Pipe(duplex=True)
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

    def receive(self) -> Any:
        """The next message."""
        assert self._conn.poll(DEADLINE), f"nothing came; the worker wrote: {self.log()}"
        try:
            return self._codec.decode(self._conn.recv_bytes())
        except EOFError:
            raise AssertionError(f"the worker ended; it wrote: {self.log()}") from None

    def ready(self) -> wire.Ready:
        """Its first message."""
        message = self.receive()
        assert isinstance(message, wire.Ready), message
        return message

    def job(self, value: Any, job: str = "job") -> tuple[wire.Done, list[Any]]:
        """Run one job: how it ended, and what came before."""
        self._conn.send_bytes(self._codec.encode(wire.Run(job, msgspec.json.encode(value))))
        before = []
        while not isinstance(message := self.receive(), wire.Done):
            before.append(message)
        return message, before

    def log(self) -> str:
        """What it has written."""
        return self._log.read_text()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(DEADLINE)
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
def no_package() -> None:
    """Skips where the real package is installed."""
    if (origin := real_package()) is not None:
        pytest.skip(f"the package runpod is installed: {origin}")
