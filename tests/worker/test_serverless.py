"""What ``supervisor.serverless`` does outside of a worker, and in the children that a handler starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import supervisor

ROOT = Path(supervisor.__file__).parents[1]
PLAIN = """
from supervisor import serverless

@serverless.register_fitness_check
def check():
    raise RuntimeError("checked")

serverless.progress_update({"id": "x"}, object())
print("before", flush=True)
serverless.start({"handler": check})
print("after")
"""


@pytest.mark.parametrize(("how", "name"), [(["{path}"], "{path}"), (["-m", "plain"], "plain")])
def test_a_plain_python_process_is_told_how_to_run_the_file(write, tmp_path, how, name):
    path = write("plain.py", PLAIN)
    command = [sys.executable, *(part.format(path=path) for part in how)]
    ended = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "before\n")
    assert f"run it with: supervise {name.format(path=path)}\n" in ended.stderr


def test_it_imports_next_to_nothing():
    code = "import sys; before = set(sys.modules); import supervisor.serverless; print(*set(sys.modules) - before)"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"msgspec", "asyncio", "supervisor.wire", "supervisor.worker"} & set(printed.split())


POOL = """
import multiprocessing
from supervisor import serverless

def double(n):
    serverless.progress_update({{"id": "job"}}, n)  # of no effect here
    return 2 * n

def handler(job):
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        return pool.map(double, job["input"])

{start}
"""
AT_IMPORT = 'serverless.start({"handler": handler})'
UNDER_MAIN = f'if __name__ == "__main__":\n    {AT_IMPORT}'


@pytest.mark.parametrize("kind", ["file", "module", "function"])
@pytest.mark.parametrize("start", [pytest.param(AT_IMPORT, id="at-import"), pytest.param(UNDER_MAIN, id="under-main")])
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_handler_can_use_a_pool_of_processes(launch, write, kind, start, method):
    path = write("pooled.py", POOL.format(method=method, start=start))
    child = launch(kind, path if kind == "file" else "pooled", "handler" if kind == "function" else None)
    child.ready()
    assert json.loads(child.job([1, 2, 3]).output) == [2, 4, 6]
    assert child.finish() == 0
    assert child.written_so_far() == ""


def test_a_forkserver_pool_works_too(launch, write):
    child = launch("file", write("pooled.py", POOL.format(method="forkserver", start=AT_IMPORT)))
    child.ready()
    assert json.loads(child.job([1, 2, 3]).output) == [2, 4, 6]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("serverless.start({'handler': handler})", "start() cannot be called inside a running event loop"),
        (
            "from concurrent.futures import ThreadPoolExecutor as P\n    P().submit(serverless.start, {}).result()",
            "start() must be called in the main thread",
        ),
    ],
)
def test_a_second_start_is_refused(serve, body, message):
    child = serve(
        f"from supervisor import serverless\ndef handler(job):\n    {body}\nserverless.start({{'handler': handler}})"
    )
    assert json.loads(child.job().error)["error_message"].startswith(message)
