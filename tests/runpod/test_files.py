"""Whose files are where, and who may remove them: many workers share one folder here, and many jobs one worker.

The same with the package and without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.wire import messages as wire

DOES_AS_TOLD = """
import asyncio, multiprocessing, os, subprocess, sys, tempfile, threading
import runpod
from runpod.serverless.utils import download_files_from_urls, rp_cleanup, rp_download, rp_upload
from runpod.serverless.utils import upload_in_memory_object

def handler(job):
    scope = {**globals(), "job": job, "answer": None}
    exec(job["input"], scope)
    return scope["answer"]

runpod.serverless.start({"handler": handler})
"""

TOGETHER = """
import asyncio, os
import runpod
from runpod.serverless.utils import download_files_from_urls, rp_cleanup, rp_download

cleaned = asyncio.Event()

async def handler(job):
    url, cleans = job["input"]["url"], job["input"]["cleans"]
    own = [rp_download.file(url)["file_path"], *download_files_from_urls(job["id"], url)]
    if cleans:
        rp_cleanup.clean([os.path.dirname(os.path.dirname(os.path.dirname(own[0])))])
        cleaned.set()
    await cleaned.wait()
    return [os.path.exists(path) for path in own]

runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: 2})
"""

JOB = "0192a3b4c5d60192a3b4c5d6aabbccdd"  # as the supervisor makes them


@pytest.fixture
def told(serve, tmp_path: Path) -> Callable[..., Any]:
    """Starts a worker that does what its jobs say; the answer of one job of it."""
    (tmp_path / "handler.py").write_text(DOES_AS_TOLD)

    def start(name: str = "temp", **env: str) -> Callable[..., Any]:
        worker = serve(tmp_path / "handler.py", name=name, **env)
        worker.ready()

        def tell(code: str, job: str = JOB) -> Any:
            done, _ = worker.job(code, job)
            assert done.status == "COMPLETED", done.error
            return json.loads(done.output or b"null")

        tell.log = worker.log  # type: ignore[attr-defined]
        return tell

    return start


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_downloads_are_in_this_generations_folder(told, shelf: str, tmp_path: Path) -> None:
    tell = told()
    before = tree(tmp_path)
    path = tell(f"answer = rp_download.file('{shelf}/plain.txt')['file_path']")
    listed = tell(f"answer = download_files_from_urls(job['id'], '{shelf}/plain.txt')")
    own = tmp_path / "temp" / "jobs" / JOB
    assert [Path(path).parent, Path(listed[0]).parent] == [own / "job_files", own / "downloaded_files"]
    assert {name for name in tree(tmp_path) - before if not name.startswith("temp/")} == set()
    tell("rp_cleanup.clean()")
    assert not own.exists()


def test_another_workers_files_stay(told, shelf: str, tmp_path: Path) -> None:
    one, other = told("one"), told("other")
    url = f"{shelf}/plain.txt"
    download = f"answer = [rp_download.file('{url}')['file_path'], *download_files_from_urls('x', '{url}')]"
    path, listed = one(download)
    (tmp_path / "job_files").mkdir()
    (tmp_path / "input_objects").mkdir()
    (tmp_path / "output.zip").write_text("somebody's")
    names = [
        "input_objects",
        "job_files",
        "jobs",
        "one",
        "one/jobs",
        str(tmp_path),
        str(tmp_path.parent),
        "/tmp",
        "/",
        "",
        ".",
    ]
    assert other(download)
    other(f"rp_cleanup.clean({names!r})")
    assert Path(path).read_text() == Path(listed).read_text() == "plain"
    assert {"job_files", "input_objects", "output.zip"} <= tree(tmp_path)
    assert list((tmp_path / "other" / "jobs").iterdir()) == []


def test_another_jobs_files_stay(serve, shelf: str, tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(TOGETHER)
    worker = serve(tmp_path / "handler.py")
    assert worker.ready().capacity == 2
    worker.send({"url": f"{shelf}/plain.txt", "cleans": False}, "waits")
    worker.send({"url": f"{shelf}/plain.txt", "cleans": True}, "cleans")
    ended = {}
    while len(ended) < 2:
        message = worker.receive()
        if isinstance(message, wire.Done):
            ended[message.job] = message.output
    assert ended == {"waits": b"[true,true]", "cleans": b"[false,false]"}


@pytest.mark.parametrize(
    ("code", "job", "removed"),
    [
        ("os.mkdir(path := tempfile.mkdtemp() + '/deep')", JOB, True),
        ("path = tempfile.mkdtemp()", "models", True),
        ("os.makedirs(path := f'outputs/{job[\"id\"]}')", JOB, True),
        ("os.makedirs(path := f'outputs/{job[\"id\"]}/deep')", "line-6-17dbe056", True),
        ("os.makedirs(path := os.path.abspath(f'{job[\"id\"]}_out'))", JOB, True),
        ("os.makedirs(path := f'outputs/{job[\"id\"]}')", "models", False),
        ("os.makedirs(path := 'temp_images')", JOB, False),
        ("path = tempfile.gettempdir()", JOB, False),
        ("os.environ['TMPDIR'] = os.getcwd(); os.mkdir(path := 'temp_images')", JOB, False),
        ("os.mkdir('aim'); os.symlink('aim', path := f'{job[\"id\"]}')", JOB, False),
        ("os.mkdir('aim2'); os.symlink('aim2', job['id']); os.mkdir(path := f'{job[\"id\"]}/inner')", JOB, False),
        ("os.mkdir(job['id']); os.chdir(job['id']); path = os.getcwd()", JOB, False),
    ],
)
def test_of_the_folders_named_only_the_jobs_own_go(told, code: str, job: str, removed: bool) -> None:
    tell = told()
    assert tell(f"{code}; rp_cleanup.clean([path]); answer = not os.path.exists(path)", job) is removed
    assert ("rp_cleanup.clean keeps" in tell.log()) is (not removed and "symlink('aim'" not in code)


def test_children_of_the_worker(told, shelf: str, tmp_path: Path) -> None:
    tell = told()
    own = tmp_path / "temp"
    download = f"rp_download.file('{shelf}/plain.txt')['file_path']"
    forked = "queue = multiprocessing.get_context('fork').SimpleQueue(); "
    forked += f"child = multiprocessing.get_context('fork').Process(target=lambda: queue.put({download})); "
    found = tell(forked + "child.start(); answer = queue.get(); child.join()")
    assert Path(found).parent == own / "jobs" / JOB / "job_files"
    threaded = f"found = []; thread = threading.Thread(target=lambda: found.append({download})); "
    found = tell(threaded + "thread.start(); thread.join(); answer = found[0]")
    assert Path(found).parent == own / "job_files"


@pytest.mark.parametrize("id_", ["..", "a/b", "~:@+=-.x", "."])
def test_any_id_is_one_folder(told, shelf: str, tmp_path: Path, id_: str) -> None:
    tell = told()
    threaded = "found = []; thread = threading.Thread(target=lambda: found.extend(download_files_from_urls(*args))); "
    (path,) = tell(f"args = ({id_!r}, '{shelf}/plain.txt'); {threaded} thread.start(); thread.join(); answer = found")
    assert len(Path(path).relative_to(tmp_path / "temp" / "jobs").parts) == 3


def test_local_uploads_outlive_the_worker_and_do_not_replace_each_other(told, tmp_path: Path) -> None:
    tell = told(**dict.fromkeys(("BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID"), ""))
    upload = "answer = upload_in_memory_object('out.txt', job['id'].encode()); rp_cleanup.clean(['local_upload'])"
    for job in ("one", "two"):
        assert (tmp_path / tell(upload, job)).read_text() == job
    assert (tmp_path / "local_upload/one/out.txt").read_text() == "one"


REFUSED = {
    "ftp://example.org/x": "blocked URL scheme 'ftp': ftp://example.org/x",
    "file:///etc/hostname": "blocked URL scheme 'file': file:///etc/hostname",
    "http:///x": "URL has no host: http:///x",
    **{
        f"http://{address}:1/x": f"host '{address.strip('[]')}' resolves to non-public address {address.strip('[]')}"
        for address in (
            "127.0.0.1",
            "10.1.2.3",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "[::1]",
            "[fc00::1]",
        )
    },
}
TRY = """
answer = {{}}
for url in {urls!r}:
    try:
        answer[url] = download_files_from_urls(job["id"], url) if {many} else rp_download.file(url)["original_name"]
    except Exception as error:
        answer[url] = [type(error).__name__, str(error)]
"""


@pytest.mark.parametrize("many", [True, False])
def test_nothing_of_the_inside_is_downloaded(told, many: bool) -> None:
    tell = told(RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS="", http_proxy="", https_proxy="", HTTP_PROXY="", HTTPS_PROXY="")
    found = tell(TRY.format(urls=list(REFUSED), many=many))
    assert found == {url: ["SSRFError", text] for url, text in REFUSED.items()}


def test_no_proxy_is_asked(told) -> None:
    tell = told(RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS="", no_proxy="", NO_PROXY="", http_proxy="http://127.0.0.1:9")
    found = tell(TRY.format(urls=["http://93.184.216.34/x"], many=False))
    why = "IP pinning cannot be enforced via a proxy; set RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS=true to allow it"
    text = f"refusing to fetch http://93.184.216.34/x through proxy http://127.0.0.1:9: {why}"
    assert found == {"http://93.184.216.34/x": ["SSRFError", text]}


REBINDS = """
import socket
addresses = ["93.184.216.34", "127.0.0.1"]
found = lambda host, port, *rest, **more: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (addresses.pop(0), int(port)))]
resolve, socket.getaddrinfo = socket.getaddrinfo, found
try:
    rp_download.file("http://rebinds.test:{port}/plain.txt")
except Exception as error:
    answer = [type(error).__name__, str(error)]
finally:
    socket.getaddrinfo = resolve
"""


def test_a_name_that_changes_its_address(told, shelf: str, no_package: None) -> None:
    tell = told(RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS="", no_proxy="*")
    answer = tell(REBINDS.format(port=shelf.rpartition(":")[2]))
    assert answer == ["SSRFError", "host 'rebinds.test' resolves to non-public address 127.0.0.1"]


def test_redirects_and_sizes(told, shelf: str) -> None:
    tell = told(RUNPOD_MAX_DOWNLOAD_BYTES="5")
    found = tell(
        TRY.format(
            urls=[f"{shelf}/{name}" for name in ("inside", "round", "away", "query.jpg?signed=1", "none")], many=False
        )
    )
    assert found == {
        f"{shelf}/inside": ["SSRFError", "blocked URL scheme 'file': file:///etc/hostname"],
        f"{shelf}/round": ["SSRFError", f"exceeded maximum redirects (5): {shelf}/round"],
        f"{shelf}/away": "away",
        f"{shelf}/query.jpg?signed=1": ["SSRFError", "download exceeds size cap: 6 > 5 bytes"],
        f"{shelf}/none": ["HTTPError", f"404 Client Error: Not Found for url: {shelf}/none"],
    }


def test_what_cannot_be_downloaded_is_none(told, shelf: str) -> None:
    tell = told()
    assert tell(f"answer = download_files_from_urls(job['id'], ['{shelf}/none', None])") == [None, None]
    assert f"Failed to download {shelf}/none: 404 Client Error: Not Found for url: {shelf}/none" in tell.log()


def test_cuda_is_what_nvidia_smi_says(told, tmp_path: Path) -> None:
    tell = told(PATH=str(tmp_path))
    ask = "from runpod.serverless.utils import rp_cuda; answer = rp_cuda.is_available()"
    assert tell(ask) is False
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '| NVIDIA-SMI 570.1 |'\n")
    (tmp_path / "nvidia-smi").chmod(0o700)
    assert tell(ask) is True
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '| NVIDIA-SMI has failed |'\nexit 9\n")
    assert tell(ask) is False
