"""The client commands in this process, against a stand-in for the API: what they send, print and end with."""

from __future__ import annotations

import http.server
import io
import json
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.cli import app, remote, tables
from supervisor.cli.gpus import ListedGpu, ListedProcess, show_table
from supervisor.gpu.locks import Holder
from supervisor.protocol.views import RefreshView, WorkerView

ERROR = json.dumps(
    {"error_type": "<class 'ValueError'>", "error_message": "no\x1b[31m such", "error_traceback": "Trace"}
)
DONE = {"id": "a", "status": "COMPLETED", "delayTime": 3, "executionTime": 1204, "workerId": "gpu0-1"}
DONE = {**DONE, "output": {"text": "é"}, "retries": 0}
FAILED = {"id": "b", "status": "FAILED", "delayTime": 0, "executionTime": 5, "workerId": "gpu1-2"}
FAILED = {**FAILED, "error": ERROR, "retries": 1}
QUEUED = {"id": "c", "status": "IN_QUEUE", "delayTime": 7, "retries": 0}
WORKER = {"id": "gpu0-1", "slot": "gpu0", "gpus": [0], "state": "held", "pid": 41, "generation": 1, "jobs": 2}
WORKER = {**WORKER, "refreshes": 0, "restarts": 0, "running": ["a"], "gpuMemoryMiB": 812, "lastRefresh": None}
WORKER |= {"reason": "9 MiB are held by pid 7", "spare": False}
STREAM = (
    'id: 0\ndata: {"output":"a \\u001b[1mcat"}\n\nid: 1\ndata: {"output":{"n":1}}\n\nid: 2\ndata: {"output":" sat"}\n\n'
)
END = 'event: end\ndata: {"status":"COMPLETED"}\n\n'


class Api:
    """Answers by method and path, and keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.sent: list[tuple[str, bytes]] = []
        self.headers: dict[str, str] = {}

    def answer(self, asked: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        self.sent.append((asked, body))
        self.headers = headers
        found = self.answers.get(asked, (404, {"error": "no job"}))
        status, said = found if isinstance(found, tuple) else (200, found)
        return status, said.encode() if isinstance(said, str) else json.dumps(said, ensure_ascii=False).encode()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False


@pytest.fixture
def api(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A stand-in for a supervisor, at ``SUPERVISE_URL``."""
    found = Api()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, said = found.answer(f"{self.command} {self.path}", body, dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def do_POST(self) -> None:
            self.do_GET()

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("SUPERVISE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        yield found
        server.shutdown()
        thread.join(20)


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line: its exit code and what it said."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = app.main(arguments)
        sys.stdout.flush()
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody looks at the output."""
    monkeypatch.setattr(remote, "for_terminal", lambda as_json: not as_json)


Say = Callable[..., tuple[int, str, str]]


# --- submit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (['{"prompt": "a cat"}'], {"input": {"prompt": "a cat"}}),
        (['{"input": null, "id": "x"}'], {"input": None, "id": "x"}),
        (["[1, 2]"], {"input": [1, 2]}),
        (["null"], {"input": None}),
        ([' "text" '], {"input": "text"}),
        (
            ["prompt=a cat", "steps:=20", "a.b:=null", "e="],
            {"input": {"prompt": "a cat", "steps": 20, "a.b": None, "e": ""}},
        ),
        (["x=a=b:=c"], {"input": {"x": "a=b:=c"}}),
        (["input:=[1]"], {"input": [1]}),
        (["1", "--id", "x", "--webhook", "http://h"], {"input": 1, "id": "x", "webhook": "http://h"}),
        (
            ["1", "--low-priority", "--ttl", "1h", "--execution-timeout", "1.5"],
            {"input": 1, "policy": {"executionTimeout": 1500, "ttl": 3_600_000, "lowPriority": True}},
        ),
        (
            ['{"input": 1, "id": "x", "policy": {"ttl": 5, "lowPriority": true}}', "--ttl", "10", "--id", "y"],
            {"input": 1, "id": "y", "policy": {"ttl": 10_000, "lowPriority": True}},
        ),
    ],
)
def test_what_is_submitted(api: Api, say: Say, words: list[str], body: Any) -> None:
    api.answers["POST /run"] = {"id": "a", "status": "IN_QUEUE"}
    assert say("submit", *words) == (0, "a\n", "")
    assert json.loads(api.sent[0][1]) == body


def test_digits_are_sent_as_they_were_written(api: Api, say: Say) -> None:
    api.answers["POST /run"] = {"id": "a", "status": "IN_QUEUE"}
    say("submit", '{"n": 12345678901234567890123, "f": 1.10}')
    assert b"12345678901234567890123" in api.sent[0][1]
    assert b"1.10" in api.sent[0][1]


def test_input_from_elsewhere(api: Api, say: Say, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api.answers["POST /run"] = {"id": "a", "status": "IN_QUEUE"}
    (folder / "request.json").write_text('{"input": 1}\n')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[2]\n")))
    assert say("submit", "--input-file", "request.json", "--json")[1] == '{"id":"a","status":"IN_QUEUE"}\n'
    assert say("submit", "--input-file", "-", "--idempotency-key", "k", "--api-key", "s3")[0] == 0
    assert [json.loads(body) for _, body in api.sent] == [{"input": 1}, {"input": [2]}]
    assert (api.headers["Idempotency-Key"], api.headers["Authorization"]) == ("k", "Bearer s3")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit"], "no INPUT: give JSON, pairs such as prompt=hello, or --input-file"),
        (["submit", "hello"], "INPUT: invalid JSON ("),
        (["submit", "a=1", "hello"], "'hello' is not a pair"),
        (["submit", "a:=hello"], "a: invalid JSON ("),
        (["submit", '"\\ud800"'], "INPUT: invalid JSON ("),
        (["submit", "1", "--input-file", "x"], "--input-file and INPUT ('1') are mutually exclusive"),
        (["submit", "--input-file", "none"], "--input-file: cannot read none: No such file"),
        (["submit", "1", "--ttl", "soon"], "--ttl: invalid duration 'soon'"),
        (["submit", "1", "--wait", "--stream"], "--wait and --stream are mutually exclusive"),
        (["submit", "1", "--wiat"], "--wiat: no such option; did you mean --wait?"),
        (["stauts", "a"], "did you mean status?"),
        (["status"], "missing argument 'ID'"),
        (["cancel"], "missing argument 'ID...'"),
        (["jobs", "--status", "faild"], "did you mean FAILED?"),
        (["jobs", "--limit", "0"], "--limit"),
        (["jobs", "--url", "ftp://h"], "is no URL"),
    ],
)
def test_mistakes(folder: Path, say: Say, arguments: list[str], words: str) -> None:
    code, out, said = say(*arguments)
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert said.startswith("supervise: ")
    assert words in said


def test_waiting_for_the_end(api: Api, say: Say) -> None:
    api.answers |= {"POST /run": {"id": "a", "status": "IN_QUEUE"}, "GET /status/a": QUEUED | {"id": "a"}}
    api.answers["GET /status-sync/a?wait=30000"] = DONE
    code, out, said = say("submit", "1", "--wait")
    assert (code, json.loads(out), said) == (0, DONE, "")
    api.answers["GET /status/a"] = FAILED
    code, out, _ = say("submit", "1", "--wait")
    assert (code, json.loads(out)) == (1, FAILED)


# --- status, stream, logs ---------------------------------------------------------------------------------------------


def test_a_status_is_passed_on_as_it_came(api: Api, say: Say) -> None:
    api.answers["GET /status/b"] = '{"id":"b","status":"FAILED", "delayTime":0,"new":1.50,"retries":0}'
    assert say("status", "b") == (0, api.answers["GET /status/b"] + "\n", "")
    assert say("status", "b", "--wait")[0] == 1
    code, out, said = say("status", "x")
    assert (code, out) == (1, "")
    assert "no job (HTTP 404)" in said


@pytest.mark.usefixtures("person")
def test_a_status_for_people(api: Api, say: Say) -> None:
    api.answers |= {"GET /status/a": DONE, "GET /status/b": FAILED}
    assert say("status", "a")[1].splitlines() == [
        "id        a",
        "status    COMPLETED",
        "waited    3 ms",
        "ran       1.2 s",
        "worker    gpu0-1",
        "output    {",
        '            "text": "é"',
        "          }",
    ]
    lines = say("status", "b")[1].splitlines()
    assert lines[5:] == ["retries   1", "error     ValueError: no such", "          Trace"]
    assert json.loads(say("status", "a", "--json")[1]) == DONE


def test_a_stream(api: Api, say: Say) -> None:
    api.answers |= {"GET /stream/a": STREAM + END, "GET /status/a": DONE}
    assert say("stream", "a") == (0, 'a \x1b[1mcat\n{"n":1}\n sat\n', "")
    _, out, _ = say("stream", "a", "--json")
    assert [json.loads(line)["output"] for line in out.splitlines()] == ["a \x1b[1mcat", {"n": 1}, " sat"]
    api.answers |= {"GET /stream/b": END, "GET /status/b": FAILED}
    assert say("stream", "b") == (1, "", "supervise: job b FAILED: ValueError: no such\n")


def test_a_stream_that_follows_a_submit(api: Api, say: Say) -> None:
    api.answers |= {
        "POST /run": {"id": "a", "status": "IN_QUEUE"},
        "GET /stream/a": STREAM + END,
        "GET /status/a": DONE,
    }
    assert say("submit", "1", "--stream") == (0, 'a \x1b[1mcat\n{"n":1}\n sat\n', "")


def test_logs(api: Api, say: Say) -> None:
    api.answers["GET /logs/a"] = "one\n\x1b[31mtwo\n"
    assert say("logs", "a") == (0, "one\n\x1b[31mtwo\n", "")
    api.answers["GET /logs/a?follow=1"] = "id: 9\ndata: one\ndata: two\n\n" + END
    assert say("logs", "-f", "a") == (0, "one\ntwo\n", "")


# --- cancel, retry ----------------------------------------------------------------------------------------------------


def test_orders_to_several_jobs(api: Api, say: Say) -> None:
    api.answers["POST /cancel/a"] = {"id": "a", "status": "CANCELLED"}
    assert say("cancel", "a") == (0, '{"id":"a","status":"CANCELLED"}\n', "")
    api.answers["POST /cancel/b"] = {"id": "b", "status": "COMPLETED"}
    assert say("cancel", "b", "a")[0] == 1
    code, out, said = say("cancel", "x", "a")
    assert (code, out, said.count("\n")) == (1, '{"id":"a","status":"CANCELLED"}\n', 1)
    api.answers["POST /retry/a"] = (409, {"error": "the job is COMPLETED"})
    api.answers["POST /retry/b"] = {"id": "b", "status": "IN_QUEUE"}
    code, out, said = say("retry", "a", "b")
    assert (code, out) == (1, '{"id":"b","status":"IN_QUEUE"}\n')
    assert "the job is COMPLETED (HTTP 409)" in said


def test_a_refusal_of_everything_is_said_once(api: Api, say: Say) -> None:
    api.answers |= {"POST /cancel/a": (401, {"error": "a key"}), "POST /cancel/b": (401, {"error": "a key"})}
    code, _, said = say("cancel", "a", "b")
    assert (code, said.count("\n")) == (1, 1)
    assert "--api-key or SUPERVISE_API_KEY" in said


# --- jobs, workers ------------------------------------------------------------------------------------------------------


def test_jobs(api: Api, say: Say) -> None:
    api.answers["GET /requests?status=FAILED&limit=2&after="] = {"requests": [FAILED], "next": None}
    code, out, _ = say("jobs", "--status", "failed", "--limit", "2")
    assert (code, [json.loads(line) for line in out.splitlines()]) == (0, [FAILED])
    api.answers["GET /requests?status=&limit=1000&after="] = {"requests": [DONE, QUEUED], "next": "c"}
    api.answers["GET /requests?status=&limit=1000&after=c"] = {"requests": [FAILED], "next": None}
    assert [json.loads(line)["id"] for line in say("jobs", "--all")[1].splitlines()] == ["a", "c", "b"]


@pytest.mark.usefixtures("person")
def test_jobs_for_people(api: Api, say: Say) -> None:
    api.answers["GET /requests?status=&limit=100&after="] = {"requests": [DONE, FAILED, QUEUED], "next": None}
    assert [line.rstrip() for line in say("jobs")[1].splitlines()] == [
        "id  status     waited    ran  worker  retries  error",
        "a   COMPLETED    3 ms  1.2 s  gpu0-1        0",
        "b   FAILED       0 ms   5 ms  gpu1-2        1  ValueError: no such",
        "c   IN_QUEUE     7 ms      -  -             0",
    ]
    api.answers["GET /requests?status=&limit=100&after="] = {"requests": [], "next": None}
    assert say("jobs") == (0, "", "no jobs\n")


def test_workers(api: Api, say: Say) -> None:
    api.answers["GET /workers"] = [WORKER]
    assert json.loads(say("workers")[1]) == WORKER
    api.answers |= {
        f"POST /workers/{slot}/{what}": {"slot": slot, "status": what}
        for slot, what in (("gpu0", "pause"), ("gpu1", "refresh"))
    }
    code, out, _ = say("workers", "--pause", "gpu0", "--refresh", "gpu1")
    assert (code, out) == (0, '{"slot":"gpu0","status":"pause"}\n{"slot":"gpu1","status":"refresh"}\n')
    api.answers["POST /workers/x/resume"] = (404, {"error": "no slot 'x'; there are: gpu0"})
    code, _, said = say("workers", "--resume", "x")
    assert code == 1
    assert "there are: gpu0" in said


@pytest.mark.usefixtures("person")
def test_workers_for_people(api: Api, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    api.answers["GET /workers"] = [WORKER]
    title, line = say("workers")[1].splitlines()
    assert title.split()[:3] == ["slot", "state", "pid"]
    assert line.split()[:6] == ["gpu0", "held", "41", "1", "2", "0"]
    assert line.endswith("9 MiB are held by pid 7")
    api.answers["POST /workers/gpu0/resume"] = {"slot": "gpu0", "status": "resumed"}
    assert say("workers", "--resume", "gpu0")[1] == "gpu0: resumed\n"


@pytest.mark.parametrize("width", [20, 60, 100, 200])
def test_tables_fit(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    refresh = RefreshView(0, "by hand", 1.0, 2.0, 3.0, 6.0)
    tables.workers([WorkerView("gpu0-1", "gpu0", (0,), "busy", 4, 1, 2, 3, 4, ("j" * 32,), 812, refresh, "why " * 9)])
    holder = Holder(41, None, 0.0, "r", "handler\x1b[2J.py")
    processes = ListedProcess(7, 2000, "python", supervisor=41), ListedProcess(1 << 22, None, visible=False)
    gpu = ListedGpu(0, "GPU-" + "0" * 36, "NVIDIA H200", False, 812, 143_000, 5, 41, processes=processes, holder=holder)
    show_table([gpu, ListedGpu(1, "MIG-1", "NVIDIA H200", mig=2, error="GPU is lost", lost=True)])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= max(width, 45)
    assert "\x1b" not in out
    assert "held" in out


# --- without a supervisor -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["submit", "1"], ["status", "a"], ["stream", "a"], ["logs", "-f", "a"], ["cancel", "a"], ["jobs"], ["workers"]],
)
def test_nobody_there(folder: Path, say: Say, arguments: list[str]) -> None:
    code, out, said = say(*arguments, "--url", f"unix://{folder}/none.sock")
    assert (code, out, said.count("\n")) == (1, "", 1)
    assert "start one with: supervise HANDLER" in said


def test_pretend_gpus(say: Say, folder: Path) -> None:
    code, out, said = say("gpus", "--simulate-gpus", "2", "--lock-dir", str(folder))
    views = [json.loads(line) for line in out.splitlines()]
    assert (code, said) == (0, "")
    assert [(view["index"], view["simulated"], view["holder"]) for view in views] == [(0, True, None), (1, True, None)]


@pytest.mark.parametrize("name", [name for name in app.COMMANDS if name != "serve"])
def test_every_command_has_a_page_that_fits(folder: Path, say: Say, name: str) -> None:
    code, out, _ = say(name, "--help")
    assert code == 0
    assert out.startswith(f"Usage: supervise {name} ")
    assert max(map(len, out.splitlines())) <= 80
