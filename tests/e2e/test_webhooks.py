"""Webhooks of the whole program: what a receiver gets, also when the supervisor is killed between two tries."""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Runs

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0

HANDLER = """
from supervisor import serverless
def handler(job):
    assert job["input"] != "bad"
    return {"echo": job["input"]}
serverless.start({"handler": handler})
"""

EMBEDDING = """
import sys
from supervisor import Supervisor
if __name__ == "__main__":
    with Supervisor(sys.argv[1], gpus="none") as supervisor:
        print(supervisor.submit("embedded", webhook=sys.argv[2]).result())
"""

OPTIONS = ("handler.py", "--gpus", "none", "--webhook-delay", "0.2", "--webhook-timeout", "30")


class Receiver(http.server.ThreadingHTTPServer):
    """Answers with the statuses of ``script``, the last one again and again; ``None``: it hangs until the test is over."""

    daemon_threads = True

    def __init__(self, *script: int | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = list(script)
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.came: queue.SimpleQueue[tuple[dict[str, str], bytes]] = queue.SimpleQueue()
        self.url = f"http://127.0.0.1:{self.server_port}/hook"

    def next(self) -> tuple[dict[str, str], bytes]:
        """Headers and body of the next POST."""
        return self.came.get(timeout=DEADLINE_S)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            status = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        self.server.came.put(({name.lower(): value for name, value in self.headers.items()}, body))
        if status is None:
            self.server.over.wait(DEADLINE_S)
            return
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def make_receiver() -> Iterator[Any]:
    receivers = []

    def make(*script: int | None) -> Receiver:
        receivers.append(Receiver(*script))
        threading.Thread(target=receivers[-1].serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return receivers[-1]

    yield make
    for receiver in receivers:
        receiver.over.set()
        receiver.shutdown()
        receiver.server_close()


def test_a_supervisor_that_is_killed_between_two_tries(supervise: Runs, make_receiver: Any) -> None:
    supervise.write("handler.py", HANDLER)
    receiver = make_receiver(500, None, 200)
    run = supervise(*OPTIONS, "--webhook-secret", "whsec_c2VjcmV0").ready()
    job = run.run({"n": 1.50, "text": "é\u2028"}, webhook=receiver.url)
    posts = [receiver.next(), receiver.next()]
    run.kill()
    supervise.all_gone()

    run = supervise(*OPTIONS, env={"SUPERVISE_WEBHOOK_SECRET": "another"}).listening()
    posts.append(receiver.next())
    assert {body for _, body in posts} == {run.ask("GET", f"/status/{job}").body}
    assert len({headers["webhook-id"] for headers, _ in posts}) == 1
    assert all(headers["webhook-signature"].startswith("v1,") for headers, _ in posts)
    # What comes next is another job's: the first was acknowledged.
    other = run.ended(run.run("bad", webhook=receiver.url))
    assert (json.loads(receiver.next()[1]), other["status"]) == (other, "FAILED")
    assert run.stop() == 0
    assert receiver.came.empty()


def test_all_that_end_a_job_are_told(supervise: Runs, make_receiver: Any) -> None:
    supervise.write("handler.py", "import time\ndef handler(job):\n    time.sleep(60)\n")
    receiver = make_receiver(200)
    run = supervise(*OPTIONS, "--grace", "0.1").ready()
    running, queued = run.run(1, webhook=receiver.url), run.run(2, webhook=receiver.url)
    expired = run.run(3, webhook=receiver.url, policy={"ttl": 1})
    run.post(f"/cancel/{queued}")
    run.post(f"/cancel/{running}")
    told = [json.loads(receiver.next()[1]) for _ in range(3)]
    assert {body["id"]: body["status"] for body in told} == {
        running: "CANCELLED",
        queued: "CANCELLED",
        expired: "TIMED_OUT",
    }
    assert run.stop() == 0


def test_what_ends_with_the_program_is_told_before(supervise: Runs, make_receiver: Any, tmp_path: Path) -> None:
    """A test job, a batch and an embedded supervisor leave no store in which a webhook could wait."""
    supervise.write("handler.py", HANDLER)
    receiver = make_receiver(500, 200)
    given = json.dumps({"input": "test", "webhook": receiver.url})
    done = supervise.to_the_end(*OPTIONS, "--test-input", given)
    assert [receiver.next()[1], receiver.next()[1]] == [done.stdout.strip().encode()] * 2

    lines = supervise.write(
        "lines.jsonl", "".join(f'{{"input": {n}, "webhook": "{receiver.url}"}}\n' for n in range(5))
    )
    receiver.script = [500, 200]
    done = supervise.to_the_end(*OPTIONS, "--input", lines, "--output", supervise.folder / "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert len({json.loads(receiver.next()[1])["id"] for _ in range(6)}) == 5
    assert not list(supervise.folder.glob("out.jsonl.*")), "its store is left"

    embedding = supervise.write("embedding.py", EMBEDDING)
    run = supervise.start(
        [*supervise.command()[:1], str(embedding), "handler.py", receiver.url], {"PYTHONPATH": str(ROOT)}
    )
    assert run.wait() == 0, str(run)
    assert json.loads(receiver.next()[1])["output"] == {"echo": "embedded"}
    assert receiver.came.empty()


def test_a_batch_that_is_stopped_keeps_what_was_not_told(supervise: Runs, make_receiver: Any) -> None:
    supervise.write("handler.py", HANDLER)
    receiver = make_receiver(None, 200)
    lines = supervise.write("lines.jsonl", f'{{"input": 1, "webhook": "{receiver.url}"}}\n')
    command = (*OPTIONS, "--input", lines, "--output", supervise.folder / "out.jsonl")
    run = supervise(*command)
    first = receiver.next()
    run.kill(signal.SIGTERM)
    run.wait_for_line("^1 webhook was not delivered$")
    run.kill(signal.SIGINT)  # it gives the try that is under way a moment
    assert run.wait() == 130
    done = supervise.to_the_end(*command)
    assert done.returncode == 0, done.stderr
    second = receiver.next()
    assert (first[0]["webhook-id"], first[1]) == (second[0]["webhook-id"], second[1])
    assert not list(supervise.folder.glob("out.jsonl.*")), "its store is left"
