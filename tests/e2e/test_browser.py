"""A real browser, and pages of other origins in it: those of `--allow-origin` call the API, all others do not."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Runs, Supervise

PAGE = Path(__file__).parents[1] / "clients/page.html"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER_S = 40.0
"""How long a browser may take to start and to do what a page says, on a busy machine."""

OPTIONS = (
    "--headless",
    "--no-sandbox",  # which root cannot have, and containers often not
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",  # nothing else is asked anything
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")

KEY = "right-key"
HANDLER = """
def handler(job):
    yield from job["input"]
"""


class Pages:
    """Serves the page, and what it has to do; takes what it says."""

    def __init__(self) -> None:
        self.asks: list[dict[str, Any]] = []
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pages = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = {"/": PAGE.read_bytes(), "/asks": json.dumps(pages.asks).encode()}.get(self.path)
                self._answer(404 if found is None else 200, found or b"")

            def do_POST(self) -> None:
                pages._said.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer(200, b"")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if self.path == "/" else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def said(self) -> Any:
        return self._said.get(timeout=BROWSER_S)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def pages() -> Iterator[Pages]:
    made = Pages()
    yield made
    made.close()


@pytest.fixture
def seen_by(pages: Pages, supervise: Runs) -> Iterator[Callable[..., Any]]:
    """Has the page do ``asks``, as one of the origin ``http://HOST:PORT``; what came of each."""

    def look(host: str, *asks: dict[str, Any]) -> Any:
        pages.asks = list(asks)
        command = [str(BROWSER), *OPTIONS, f"--user-data-dir={home}/profile", f"http://{host}:{pages.port}/"]
        with (home / "log").open("wb") as log:
            browser = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            return pages.said()
        except queue.Empty:
            raise AssertionError((home / "log").read_text("utf-8", "replace")) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            nobody = supervise.client(0)
            nobody.until(lambda: not any("chrom" in command for command in supervise.processes().values()))

    # A short name, because it holds a socket; and while the browser lives it writes there.
    with tempfile.TemporaryDirectory(prefix="web-") as folder:
        home = Path(folder)
        environ = {**supervise.environ, "HOME": folder, "TMPDIR": folder}
        yield look


def serving(supervise: Runs, pages: Pages, *options: object) -> Supervise:
    handler = supervise.write("echo.py", HANDLER)
    allowed = f"http://127.0.0.1:{pages.port}"
    run = supervise(handler, "--gpus", "none", "--max-body", "1KiB", "--allow-origin", allowed, *options)
    return run.ready()


def ask(run: Supervise, path: str, body: Any = None, *, key: bool = True, **headers: str) -> dict[str, Any]:
    given = {"Authorization": f"Bearer {KEY}"} if key else {}
    if body is None:
        return {"url": f"http://127.0.0.1:{run.port}{path}", "method": "GET", "headers": {**given, **headers}}
    given["Content-Type"] = "application/json"
    text = json.dumps(body)
    return {
        "url": f"http://127.0.0.1:{run.port}{path}",
        "method": "POST",
        "headers": {**given, **headers},
        "body": text,
    }


def test_a_page_of_an_allowed_origin_uses_the_api(supervise: Runs, pages: Pages, seen_by: Callable[..., Any]) -> None:
    run = serving(supervise, pages, "--api-key", KEY)
    done, twice, no_key, large, unknown, chunks, openai, deleted = seen_by(
        "127.0.0.1",
        ask(run, "/v2/echo/runsync", {"input": [1, 2], "id": "a"}),
        ask(run, "/v2/echo/run", {"input": [3]}, **{"Idempotency-Key": "b"}),
        ask(run, "/v2/echo/run", {"input": [4]}, key=False),
        ask(run, "/v2/echo/run", {"input": ["x" * 2000]}),
        ask(run, "/v2/echo/status/nobody"),
        ask(run, "/v2/echo/stream/a", Accept="text/event-stream"),
        ask(run, "/v2/echo/openai/v1/chat/completions", {"messages": []}, **{"X-Stainless-Lang": "js"}),
        {**ask(run, "/v2/echo/status/a"), "method": "DELETE"},
    )
    assert (done["status"], json.loads(done["body"])["status"]) == (200, "COMPLETED"), done
    assert (twice["status"], json.loads(twice["body"])["status"]) == (200, "IN_QUEUE"), twice
    assert (no_key["status"], no_key["headers"]["www-authenticate"]) == (401, 'Bearer realm="supervise"'), no_key
    assert (large["status"], "--max-body" in json.loads(large["body"])["error"]) == (413, True), large
    assert (unknown["status"], "nobody" in json.loads(unknown["body"])["error"]) == (404, True), unknown
    assert (chunks["status"], chunks["body"].count('data: {"output":')) == (200, 2), chunks
    assert openai["headers"]["x-request-id"], openai
    assert deleted == {"error": "TypeError"}  # the preflight does not name it, so it was not even sent
    assert run.stop() == 0


def test_a_page_of_an_allowed_origin_follows_a_stream(
    supervise: Runs, pages: Pages, seen_by: Callable[..., Any]
) -> None:
    run = serving(supervise, pages)
    done, followed = seen_by(
        "127.0.0.1",
        ask(run, "/v2/echo/runsync", {"input": [1, 2, 3], "id": "a"}, key=False),
        {"follow": f"http://127.0.0.1:{run.port}/v2/echo/stream/a"},
    )
    assert done["status"] == 200, done
    assert followed == {"chunks": [1, 2, 3]}
    assert run.stop() == 0


@pytest.mark.parametrize("keys", [(), ("--api-key", KEY)], ids=["without keys", "with keys"])
def test_a_page_of_another_origin_neither_asks_nor_reads(
    supervise: Runs, pages: Pages, seen_by: Callable[..., Any], keys: tuple[str, ...]
) -> None:
    run = serving(supervise, pages, *keys)
    simple = {"url": f"http://127.0.0.1:{run.port}/v2/echo/run", "method": "POST", "body": '{"input": [1]}'}
    said = seen_by(
        "localhost",
        ask(run, "/v2/echo/runsync", {"input": [1]}, key=bool(keys)),
        ask(run, "/health", key=bool(keys)),
        simple,  # needs no preflight: it is sent, and refused
        {"follow": f"http://127.0.0.1:{run.port}/v2/echo/stream/a"},
    )
    assert [each.get("error") for each in said] == ["TypeError", "TypeError", "TypeError", "EventSource"], said
    run.headers["Authorization"] = KEY
    assert run.get("/requests")["requests"] == []
    assert run.stop() == 0
