"""Wrong handlers, options, ports and requests: what a person is told, and with which exit code; and the program goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Gate, Runs

GOOD = "def handler(job):\n    return job['input']\n"
CPU = ("--gpus", "none")

UNFIT = """
from supervisor import serverless

def check():
    raise RuntimeError("no GPU memory")

serverless.register_fitness_check(check)
serverless.start({"handler": print})
"""
HANDLERS = [
    ("import nonexistent_module_xyz\n" + GOOD, ["handler.py", "nonexistent_module_xyz"]),
    ("def handler(job:\n    return 1\n", ["handler.py", "SyntaxError", "line 1"]),
    (
        "def deep():\n    raise ValueError('no weights')\n\ndeep()\n" + GOOD,
        ["Traceback (most recent call last):", 'handler.py", line 4, in <module>', "in deep", "ValueError: no weights"],
    ),
    ("import sys\nsys.exit('no licence')\n", ["sys.exit('no licence')"]),
    ("x = 1\n", ["handler.py", "no function named handler"]),
    ("from supervisor import serverless\nserverless.start({'handle': print})\n", ["'handler'", "line 2"]),
    (
        UNFIT,
        ["fitness check", "no GPU memory"],
    ),
]


@pytest.mark.parametrize(("source", "words"), HANDLERS)
def test_a_wrong_handler(supervise: Runs, source: str, words: list[str]) -> None:
    done = supervise.to_the_end(supervise.write("handler.py", source), *CPU, "--workers", 2)
    assert done.returncode == 2, done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr
    # The user's own frames and no other.
    frames = [line for line in done.stderr.splitlines() if line.startswith('  File "') and "handler.py" not in line]
    assert frames == [], done.stderr
    assert done.stderr.count("supervise: ") == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_handlr.py", "no such file; did you mean my_handler.py?"),
        ("nowhere/handler.py", "there is no folder nowhere"),
        ("no_such_module_xyz", "there is no Python module no_such_module_xyz"),
        ("json.no_such_module_xyz", "there is no Python module json.no_such_module_xyz"),
        ("my_handler:missing", "my_handler has no missing"),
        ("my_handler:number", "is no function but int"),
    ],
)
def test_a_handler_that_is_not_there(supervise: Runs, name: str, words: str) -> None:
    supervise.write("my_handler.py", GOOD + "number = 1\n")
    done = supervise.to_the_end(name, *CPU)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("print('loading', flush=True)\nimport os; os._exit(7)\n", [], ["exited with code 7", "loading"]),
        ("import os; os.kill(os.getpid(), 11)\n", ["--workers", 2], ["crashed with SIGSEGV"]),
        ("import time; time.sleep(3600)\n", ["--start-timeout", "300ms", "--workers", 2], ["--start-timeout"]),
    ],
)
def test_a_first_load_that_dies_or_hangs(supervise: Runs, source: str, options: list[object], words: list[str]) -> None:
    done = supervise.to_the_end(supervise.write("handler.py", source), *CPU, *options)
    assert done.returncode == 3, done.stderr
    assert [word for word in ("no worker could start", *words) if word not in done.stderr] == [], done.stderr
    assert "next try" not in done.stderr, "there is none"


def test_a_template_that_cannot_start(supervise: Runs) -> None:
    """As in an environment that is broken in a way which the supervisor itself does not meet."""
    supervise.write("sitecustomize.py", "import os, sys\nif 'template/main.py' in sys.orig_argv[1]: os._exit(9)\n")
    done = supervise.to_the_end(supervise.write("handler.py", GOOD), *CPU, env={"PYTHONPATH": str(supervise.folder)})
    assert done.returncode == 3, done.stderr
    assert "no worker could start" in done.stderr
    assert "the template process exited with code 9" in done.stderr


def test_one_slot_that_cannot_start_does_not_end_the_others(supervise: Runs) -> None:
    source = "import os\nif os.environ['SUPERVISE_SLOT'] == 'cpu0':\n    raise ValueError('not here')\n" + GOOD
    run = supervise(supervise.write("handler.py", source), *CPU, "--workers", 2).ready("cpu1")
    assert run.runsync(1)["workerId"] == "cpu1-1"
    run.wait_for_line("cpu0: could not load the handler: .*ValueError: not here")
    worker = run.until(lambda: (it := run.workers()["cpu0"])["state"] == "backoff" and it)
    assert "not here" in worker["reason"]
    assert run.ask("GET", "/readyz").status == 200
    assert run.stop() == 0


def test_jobs_wait_in_the_store_when_no_worker_could_start(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    handler = supervise.write("handler.py", f"open({gate.path!r}).read()\nraise ValueError('not today')\n")
    run = supervise(handler, *CPU).listening()
    gate.reached()
    assert run.ask("GET", "/readyz").status == 503
    assert run.ask("GET", "/livez").status == 200
    job = run.run(1)
    gate.open()
    assert run.wait() == 2
    assert "not today" in run.stderr.whole()
    supervise.write("handler.py", GOOD)
    run = supervise(handler, *CPU).listening()
    assert run.ended(job)["output"] == 1
    assert run.stop() == 0


def test_a_port_that_is_taken(supervise: Runs) -> None:
    handler = supervise.write("handler.py", GOOD)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = supervise.to_the_end(handler, *CPU, "--port", port)
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert done.stderr.count("\n") == 1
    done = supervise.to_the_end(handler, *CPU, "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "--api-key" in done.stderr
    assert "--no-auth" in done.stderr
    done = supervise.to_the_end(handler, *CPU, "--refresh-wroker")
    assert done.returncode == 2
    assert "did you mean --refresh-worker?" in done.stderr


def test_a_store_that_is_none(supervise: Runs) -> None:
    handler = supervise.write("handler.py", GOOD)
    supervise.write("store.db", "this is no database, and somebody's file\n" * 100)
    done = supervise.to_the_end(handler, *CPU)
    assert done.returncode == 2, done.stderr
    assert "store.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert (supervise.folder / "store.db").read_text().startswith("this is no database")


BODIES: list[tuple[bytes, int, list[str]]] = [
    (b"", 400, ["empty"]),
    (b"{", 400, ["byte 1", "line 1"]),
    (b'{"input": 1,}', 400, ["byte 12"]),
    (b'{"input": NaN}', 400, ["byte"]),
    (b"[]", 400, ["object"]),
    (b'"input"', 400, ["object"]),
    (b"{}", 400, ["input"]),
    (b'{"inputs": 1}', 400, ["input"]),
    (b'{"input": "\xff"}', 400, ["UTF-8", "byte 11"]),
    (b'{"input": 1, "id": 7}', 400, ["id"]),
    (b'{"input": 1, "webhook": "ftp://x"}', 400, ["webhook"]),
    (b'{"input": 1, "policy": 7}', 400, ["policy"]),
    (b'{"input": 1, "policy": {"ttl": -1}}', 400, ["policy.ttl"]),
    (b'{"input": 1, "s3Config": 7}', 400, ["s3Config"]),
    (b"[" * 100_000, 400, []),
    (b'{"input": "%s"}' % (b"x" * 100_000), 413, ["--max-body"]),
]


def test_wrong_requests(supervise: Runs) -> None:
    run = supervise(supervise.write("handler.py", GOOD), *CPU, "--max-body", "100KB").ready()
    for body, status, words in BODIES:
        for path in ("/run", "/runsync"):
            answer = run.ask("POST", path, body)
            assert answer.status == status, (body[:80], answer)
            assert [word for word in words if word not in answer.error] == [], (body[:80], answer)
    refusals: list[tuple[str, str, dict[str, str], int]] = [
        ("GET", "/run", {}, 405),
        ("DELETE", "/status/x", {}, 405),
        ("GET", "/status/unknown", {}, 404),
        ("GET", "/stauts/unknown", {}, 404),
        ("GET", "/health", {"Host": "evil.example"}, 403),
        ("GET", "/health", {"Origin": "https://evil.example"}, 403),
        ("GET", "/health", {"Host": f"localhost:{run.port}"}, 200),
        ("GET", "/livez", {"Host": "evil.example"}, 200),
    ]
    for method, path, headers, status in refusals:
        answer = run.ask(method, path, headers=headers)
        assert answer.status == status, (method, path, headers, answer)
    # A request that is no HTTP, one that never ends, one that is left alone: each its own.
    for data in (
        b"\x16\x03\x01 hello\r\n\r\n",
        b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{",
    ):
        with socket.create_connection(("127.0.0.1", run.port)) as sock:
            sock.sendall(data)
    assert run.runsync("still there")["output"] == "still there"
    assert run.get("/health")["jobs"]["completed"] == 1
    assert run.workers()["cpu0"]["restarts"] == 0
    assert run.stop() == 0


def test_a_client_that_offers_http_2_is_answered_in_http_1(supervise: Runs) -> None:
    run = supervise(supervise.write("handler.py", GOOD), *CPU).ready()
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA"}
    answer = run.ask("POST", "/runsync", {"input": 1}, headers=offer)
    assert (answer.status, answer.json.get("output")) == (200, 1)


def test_a_disk_that_is_full(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    """As far as a limit of the files' size is one: what was accepted is kept, new jobs are refused, and the program can end."""
    handler = supervise.write("handler.py", "def handler(job):\n    return open(job['input']).read()\n")
    command = supervise.command(handler, *CPU, "--drain-timeout", 0, "--grace", "200ms")
    run = supervise.start(["bash", "-c", 'ulimit -f 512; exec "$@"', "bash", *command]).ready()
    gate = make_gate()
    accepted = [run.run(gate.path)]
    gate.reached()

    def fill() -> None:
        """Until the disk is full: then this waits until there is room, or the program is gone."""
        while (answer := run.ask("POST", "/run", {"input": "/dev/null", "policy": {"x": "y" * 50_000}})).status == 200:
            accepted.append(answer.json["id"])

    with ThreadPoolExecutor() as pool:
        filling = pool.submit(fill)
        run.wait_for_line("the job store cannot be written, trying again: .*store.db: ")
        refused = run.ask("POST", "/run", {"input": 1})
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        assert run.ask("GET", "/livez").status == 200
        assert run.stop() == 0
        filling.exception()
    gate.close()

    run = supervise(handler, *CPU).listening()
    gate.open()
    assert {run.ended(job)["status"] for job in accepted} == {"COMPLETED"}
    assert run.stop() == 0


def test_keys(supervise: Runs, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\nfrom-a-file\n")
    options = ("--api-key", "from-the-command-line", "--api-key-file", tmp_path / "keys", "--host", "0.0.0.0")
    env = {"SUPERVISE_API_KEYS": "from,the-environment"}
    run = supervise(supervise.write("handler.py", GOOD), *CPU, *options, env=env).ready()

    def health(**headers: str) -> int:
        return run.ask("GET", "/health", headers=headers).status

    for key in ("from-the-command-line", "from-a-file", "from", "the-environment"):
        # As in one: the command line goes before the environment.
        known = health(Authorization=f"Bearer {key}") == 200
        assert known == (key.startswith("from-")), key
        assert (health(Authorization=key) == 200) == known
    for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"Authorization": "Basic eA=="}):
        answer = run.ask("POST", "/run", {"input": 1}, headers=wrong)
        assert answer.status == 401
        assert "key" in answer.error
    assert run.ask("GET", "/livez").status == run.ask("GET", "/readyz").status == 200
    assert health(Authorization="from-a-file", Host="any.example") == 200
    assert run.stop() == 0


def test_a_full_queue(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    handler = supervise.write("handler.py", "def handler(job):\n    return open(job['input']).read()\n")
    run = supervise(handler, *CPU, "--max-queue", 2).ready()
    gate = make_gate()
    running = run.run(gate.path)
    gate.reached()
    queued = [run.run(gate.path) for _ in range(2)]
    answer = run.ask("POST", "/run", {"input": gate.path})
    assert answer.status == 429
    assert "--max-queue" in answer.error
    assert run.post(f"/cancel/{queued[0]}")["status"] == "CANCELLED"
    queued[0] = run.run("/dev/null")
    gate.open()
    run.ended(running)
    gate.open()
    assert [run.ended(job)["status"] for job in queued] == ["COMPLETED"] * 2
    assert run.stop() == 0


def test_events_as_json(supervise: Runs) -> None:
    run = supervise(
        supervise.write("handler.py", "def handler(job): print('grüße'); return 1/0\n"), *CPU, "--log-format", "json"
    )
    found = run.wait_for_line(r'"url":"http://127.0.0.1:(\d+)"')
    run.port = int(found[1])
    job = run.runsync(1)
    assert run.stop() == 0
    lines: list[dict[str, Any]] = [json.loads(line) for line in run.stderr.whole().splitlines()]
    assert {"listening", "worker", "log", "job", "draining", "stopped"} <= {line["event"] for line in lines}
    printed = next(line for line in lines if line["event"] == "log")
    assert (printed["slot"], printed["job"], printed["text"]) == ("cpu0", job["id"], "grüße")
    ended = next(line for line in lines if line["event"] == "job")
    assert (ended["id"], ended["status"], ended["error"]) == (
        job["id"],
        "FAILED",
        "ZeroDivisionError: division by zero",
    )
