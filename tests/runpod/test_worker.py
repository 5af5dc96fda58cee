"""``import runpod`` in a worker and its children: the stand-in or the real package, whichever there is, speaks to this worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supervisor.wire import messages as wire
from supervisor.worker.runpod import STANDIN

HANDLER = """
import sys
import runpod
from runpod.serverless.modules.rp_progress import progress_update

checked = []

@runpod.serverless.register_fitness_check
def check():
    checked.append("checked")

def handler(job):
    runpod.serverless.progress_update(job, "first")
    progress_update(job, progress={"second": 2})
    try:
        from runpod.serverless.modules import rp_scale, worker_state
        local = worker_state.IS_LOCAL_TEST or rp_scale.IS_LOCAL_TEST
    except ImportError:  # the stand-in has no such thing
        local = False
    return {"file": runpod.__file__, "argv": sys.argv[1:], "checked": checked, "local": local}

runpod.serverless.start({"handler": handler})
raise SystemExit("start came back")
"""

ROUTED = """
import runpod
from runpod.serverless import worker
from runpod.serverless.modules import rp_http, rp_job, worker_state

def handler(job):
    return {
        "ids": [worker_state.WORKER_ID, rp_http.WORKER_ID, rp_job.WORKER_ID],
        "urls": [rp_http.JOB_DONE_URL, rp_http.JOB_STREAM_URL, rp_job.JOB_GET_URL, worker.heartbeat.PING_URL],
        "loader": type(runpod.serverless.__spec__.loader).__name__,
    }

runpod.serverless.start({"handler": handler})
"""

FILES = """
import os
import runpod
from runpod.serverless.utils import download_files_from_urls, rp_cleanup, rp_debugger, upload_in_memory_object

def handler(job):
    with rp_debugger.LineTimer("the same in each job"):
        download_files_from_urls(job["id"], [])
    own = os.path.join(os.environ["TMPDIR"], "jobs", job["id"])
    found = {"made": os.listdir(own), "uploaded": upload_in_memory_object("name", b"data")}
    rp_cleanup.clean()
    return {**found, "left": os.path.exists(own), "here": os.path.exists("jobs")}

runpod.serverless.start({"handler": handler})
"""

URLS = {
    "RUNPOD_WEBHOOK_POST_OUTPUT": "http://done/$RUNPOD_POD_ID/$ID",
    "RUNPOD_WEBHOOK_POST_STREAM": "http://stream/$RUNPOD_POD_ID",
    "RUNPOD_WEBHOOK_GET_JOB": "http://get/$ID",
    "RUNPOD_WEBHOOK_PING": "http://ping/$RUNPOD_POD_ID/x",
}

THIS_WORKERS = {
    "ids": ["gpu0-3"] * 3,
    "urls": ["http://done/gpu0-3/$ID", "http://stream/gpu0-3", "http://get/gpu0-3", "http://ping/gpu0-3/x"],
    "loader": "SourceFileLoader",
}

CHILDREN = """
import multiprocessing, os, subprocess, sys
import runpod

def child(queue):
    queue.put([os.environ["RUNPOD_POD_ID"], runpod.__file__])

def handler(job):
    found = {}
    for method in job["input"]:
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        found[method] = queue.get(timeout=40)
        process.join(40)
        assert process.exitcode == 0, process.exitcode
    code = "import runpod, json; print(json.dumps([runpod.__file__, runpod.serverless.start.__module__]))"
    found["subprocess"] = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return found

runpod.serverless.start({"handler": handler})  # in a spawned child's import, too, and there it comes back
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(source: str) -> Path:
        path = tmp_path / "my_handler_file.py"
        path.write_text(source)
        return path

    return write


def output(done: wire.Done) -> dict:
    assert done.status == "COMPLETED", done
    assert done.output is not None
    return json.loads(done.output)


def is_standin(file: str) -> bool:
    return file.startswith(STANDIN)


def test_start_progress_and_checks_without_the_package(start_worker, write, no_package: None) -> None:
    worker = start_worker(write(HANDLER))
    worker.ready()
    done, before = worker.job({})
    assert is_standin(output(done)["file"])
    assert output(done)["checked"] == ["checked"]
    assert before[-1] == wire.Progress("job", b'{"second":2}')


@pytest.mark.parametrize("preload", ["", "import runpod"], ids=["imported", "preloaded"])
def test_start_progress_and_checks_with_the_package(start_worker, write, package: str, preload: str) -> None:
    worker = start_worker(write(HANDLER), before=f"{package}\n{preload}")
    worker.ready()
    done, before = worker.job({})
    assert not is_standin(output(done)["file"])
    assert output(done)["checked"] == ["checked"]
    assert output(done)["local"] is False
    assert before[-1] == wire.Progress("job", b'{"second":2}')
    assert "Starting Serverless Worker" not in worker.log()


PRELOAD = "os.environ['RUNPOD_POD_ID'] = 'of-the-host'\nimport runpod\nos.environ['RUNPOD_POD_ID'] = 'gpu0-3'"


@pytest.mark.parametrize("preload", ["", PRELOAD], ids=["imported", "preloaded"])
def test_what_the_package_reads_at_import_is_this_workers(start_worker, write, package: str, preload: str) -> None:
    worker = start_worker(write(ROUTED), before=f"{package}\n{preload}", env=URLS)
    worker.ready()
    assert output(worker.job({})[0]) == THIS_WORKERS


@pytest.mark.parametrize("preload", ["", "import runpod.serverless.utils.rp_cleanup"])
def test_the_packages_files_are_routed(start_worker, write, tmp_path: Path, fake_package: Path, preload: str) -> None:
    """The real package's, too: ``test_files.py``."""
    own = tmp_path / "own"
    own.mkdir()
    before = f"sys.path.insert(1, {str(fake_package)!r})\n{preload}"
    env = {"TMPDIR": str(own), "BUCKET_ENDPOINT_URL": ""}
    worker = start_worker(write(FILES), before=before, env=env)
    worker.ready()
    for job in ("one", "two"):
        expected = {"made": ["downloaded_files"], "uploaded": f"local_upload/{job}/name", "left": False, "here": False}
        assert output(worker.job({}, job)[0]) == expected


def test_children_without_the_package(start_worker, write, no_package: None) -> None:
    worker = start_worker(write(CHILDREN))
    worker.ready()
    found = output(worker.job(["spawn", "fork", "forkserver"])[0])
    for method in ("spawn", "fork", "forkserver"):
        worker_id, file = found[method]
        assert worker_id == "gpu0-3"
        assert is_standin(file), method


def test_children_with_the_package(start_worker, write, package: str) -> None:
    worker = start_worker(write(CHILDREN), before=package)
    worker.ready()
    found = output(worker.job(["spawn"])[0])
    worker_id, file = found["spawn"]
    assert worker_id == "gpu0-3"
    assert not is_standin(file)


def test_a_subprocess_has_the_real_package_as_it_is(start_worker, write, fake_package: Path) -> None:
    worker = start_worker(write(CHILDREN), env={"PYTHONPATH": str(fake_package)})
    worker.ready()
    file, module = json.loads(output(worker.job([])[0])["subprocess"])
    assert file == str(fake_package / "runpod/__init__.py")
    assert module == "runpod.serverless"


def test_the_handlers_own_file_of_that_name_wins(start_worker, write, tmp_path: Path) -> None:
    (tmp_path / "runpod.py").write_text("mine = 'mine'\n")
    worker = start_worker(write("import runpod\ndef handler(job):\n    return runpod.mine\n"))
    worker.ready()
    assert worker.job({})[0].output == b'"mine"'
