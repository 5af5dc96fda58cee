"""The real `openai` package against a handler that passes everything on to a server of OpenAI's API, as public workers do."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Gate, Runs, Supervise

openai = pytest.importorskip("openai", reason="the openai package is only a client to test with")

PROXY = Path(__file__).parents[1] / "children/openai_proxy.py"
DEADLINE_S = 20.0
MODEL = "org/tiny"
WORDS = ["Grüße", " aus", " Århus", " 🚢", "."]
TEXT = "".join(WORDS)
MESSAGES = [{"role": "user", "content": "Hello"}]


class OpenAIServer(ThreadingHTTPServer):
    """A small server of OpenAI's API. Its models ``hangs`` and ``resets`` stream one word, and then wait for the client to leave,
    or reset the connection in the middle of the next once ``go_on`` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.left = threading.Event()
        self.go_on = threading.Event()
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join(DEADLINE_S)
        self.server_close()


class Answers(BaseHTTPRequestHandler):
    server: OpenAIServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        model = {"id": MODEL, "object": "model", "created": 1, "owned_by": "us"}
        if self.path == "/v1/models":
            self._answer({"object": "list", "data": [model]})
        elif self.path == f"/v1/models/{MODEL}":
            self._answer(model)
        else:
            self._refuse(404, "NotFoundError", f"no {self.path}")

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/silence":
            return
        if body["model"] not in (MODEL, "hangs", "resets"):
            self._refuse(404, "NotFoundError", f"The model `{body['model']}` does not exist.")
        elif not body.get("messages") and not body.get("prompt") and not body.get("input"):
            self._refuse(400, "BadRequestError", "nothing to answer")
        elif self.path == "/v1/embeddings":
            item = {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            self._answer({"object": "list", "data": [item], "model": MODEL, "usage": usage}, indent=1)
        elif body.get("stream"):
            self._stream(body["model"], "chat" if self.path == "/v1/chat/completions" else "text")
        elif self.path == "/v1/chat/completions":
            self._answer(chat(message={"role": "assistant", "content": TEXT}))
        else:
            self._answer(completion(TEXT))

    def _stream(self, model: str, kind: str) -> None:
        self._head(200, "text/event-stream")
        for word in WORDS:
            piece = chat(delta={"content": word}) if kind == "chat" else completion(word)
            event = f"data: {json.dumps(piece, ensure_ascii=False)}\n\n".encode()
            self.wfile.write(event)
            if model == "hangs":
                with contextlib.suppress(ConnectionResetError):  # one way to leave
                    self.connection.recv(1)
                self.server.left.set()
                return
            if model == "resets":
                self.wfile.write(event[:20])
                assert self.server.go_on.wait(DEADLINE_S)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
        self.wfile.write(b"data: [DONE]\n\n")

    def _answer(self, body: object, status: int = 200, indent: int | None = None) -> None:
        self._head(status, "application/json")
        self.wfile.write(json.dumps(body, indent=indent).encode())

    def _refuse(self, status: int, kind: str, message: str) -> None:
        error = {"message": message, "type": kind, "param": "model", "code": status}
        self._answer({"object": "error", **error} if self.path == "/v1/completions" else {"error": error}, status)

    def _head(self, status: int, content_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.end_headers()


def chat(**said: Any) -> dict[str, Any]:
    kind = "chat.completion.chunk" if "delta" in said else "chat.completion"
    choice = {"index": 0, "finish_reason": None if "delta" in said else "stop", **said}
    return {"id": "c1", "object": kind, "created": 1, "model": MODEL, "choices": [choice]}


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
    return {"id": "c2", "object": "text_completion", "created": 1, "model": MODEL, "choices": [choice]}


@pytest.fixture
def upstream() -> Iterator[OpenAIServer]:
    server = OpenAIServer()
    yield server
    server.close()


def base_url(run: Supervise, endpoint_id: str) -> str:
    return f"http://127.0.0.1:{run.port}/v2/{endpoint_id}/openai/v1"


def test_proxy(supervise: Runs, upstream: OpenAIServer) -> None:
    run = supervise(PROXY, "--gpus", "none", "--", upstream.server_port).ready()
    url = base_url(run, "openai_proxy")
    with openai.OpenAI(base_url=url, api_key="any", timeout=DEADLINE_S) as client:
        check_results(run, client)
        check_streams(run, client, upstream)
        check_errors(client, upstream)
    asyncio.run(check_asyncio(run, url, upstream))
    assert run.stop() == 0


def check_results(run: Supervise, client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "us"
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT
    job = run.status(answer._request_id)
    assert job["status"] == "COMPLETED"
    assert job["output"][0]["id"] == answer.id
    assert client.completions.create(model=MODEL, prompt="a").choices[0].text == TEXT
    embedding = client.embeddings.create(model=MODEL, input="a", encoding_format="float")
    assert embedding.data[0].embedding == [0.5, -1.0]


def check_streams(run: Supervise, client: Any, upstream: OpenAIServer) -> None:
    chunks = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    assert [chunk.choices[0].delta.content for chunk in chunks] == WORDS
    pieces = client.completions.create(model=MODEL, prompt="a", stream=True)
    assert [piece.choices[0].text for piece in pieces] == WORDS

    breaks = client.chat.completions.create(model="resets", messages=MESSAGES, stream=True)
    assert next(breaks).choices[0].delta.content == WORDS[0]
    upstream.go_on.set()
    with pytest.raises(openai.APIError, match="ConnectionResetError"):
        next(breaks)

    left = client.chat.completions.create(model="hangs", messages=MESSAGES, stream=True)
    assert next(left).choices[0].delta.content == WORDS[0]
    left.close()
    assert upstream.left.wait(DEADLINE_S), "nobody told the server that its reader has left"
    assert run.ended(left.response.headers["x-request-id"])["status"] == "CANCELLED"


def check_errors(client: Any, upstream: OpenAIServer) -> None:
    missing = {"model": "none"}
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError, match="The model `none` does not exist"):
            client.chat.completions.create(**missing, messages=MESSAGES, stream=stream)
        with pytest.raises(openai.BadRequestError, match="nothing to answer"):
            client.chat.completions.create(model=MODEL, messages=[], stream=stream)
        with pytest.raises(openai.NotFoundError) as raised:
            client.completions.create(**missing, prompt="a", stream=stream)
        assert raised.value.type == "NotFoundError"
        assert raised.value.param == "model"
        assert raised.value.request_id
    with pytest.raises(openai.NotFoundError, match="The model `none` does not exist"):
        client.embeddings.create(**missing, input="a", encoding_format="float")
    with pytest.raises(openai.InternalServerError, match="IncompleteReadError"):
        client.post("/silence", body={}, cast_to=object)
    assert upstream.asked.count("/v1/silence") == 1, "a job that failed was run again"


async def check_asyncio(run: Supervise, url: str, upstream: OpenAIServer) -> None:
    upstream.left.clear()
    async with openai.AsyncOpenAI(base_url=url, api_key="any", timeout=DEADLINE_S) as client:

        async def told() -> list[str]:
            chunks = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            return [chunk.choices[0].delta.content async for chunk in chunks]

        answers = await asyncio.gather(told(), told(), client.chat.completions.create(model=MODEL, messages=MESSAGES))
        assert answers[:2] == [WORDS, WORDS]
        assert answers[2].choices[0].message.content == TEXT
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="none", messages=MESSAGES, stream=True)
        async with await client.chat.completions.create(model="hangs", messages=MESSAGES, stream=True) as left:
            await left.__anext__()
        assert await asyncio.to_thread(upstream.left.wait, DEADLINE_S)
        assert run.ended(left.response.headers["x-request-id"])["status"] == "CANCELLED"


WAITS = """
def handler(job):
    open({!r}).read()
    return {!r}
"""


def test_plain_function(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    """Refusals, and clients that leave: a job that waits is cancelled, one whose end would cost its worker goes on."""
    gate = make_gate()
    handler = supervise.write("waits.py", WAITS.format(gate.path, chat(message={"role": "assistant", "content": TEXT})))
    run = supervise(handler, "--gpus", "none", "--max-queue", 1, "--api-key", "key").ready()
    run.headers["Authorization"] = "Bearer key"
    url = base_url(run, "waits")
    options = {"base_url": url, "max_retries": 0, "timeout": DEADLINE_S}
    with openai.OpenAI(**options, api_key="wrong") as stranger, pytest.raises(openai.AuthenticationError, match="key"):
        stranger.models.list()
    with openai.OpenAI(**options, api_key="key") as client:
        running, _ = leave(run)
        gate.reached()
        waiting, connection = ask(run)
        with pytest.raises(openai.RateLimitError, match="--max-queue"):
            client.chat.completions.create(model=MODEL, messages=MESSAGES)
        connection.close()
        assert run.ended(waiting)["status"] == "CANCELLED"
        assert run.status(running)["status"] == "IN_PROGRESS"
        gate.open()
        assert run.ended(running)["status"] == "COMPLETED"
        with pytest.raises(openai.NotFoundError, match="no endpoint 'other'"):
            client.with_options(base_url=url.replace("waits", "other")).models.list()
    run.kill()
    run.wait()


def ask(run: Supervise) -> tuple[str, http.client.HTTPConnection]:
    """A request that waits for its answer, and the id of its job."""
    known = {job["id"] for job in run.get("/requests")["requests"]}
    connection = http.client.HTTPConnection("127.0.0.1", run.port, timeout=DEADLINE_S)
    connection.request("POST", "/openai/v1/chat/completions", json.dumps({"model": MODEL}), run.headers)
    new: set[str] = run.until(lambda: {job["id"] for job in run.get("/requests")["requests"]} - known)
    return new.pop(), connection


def leave(run: Supervise) -> tuple[str, None]:
    """The id of a job whose client has left."""
    job, connection = ask(run)
    run.started(job)
    connection.close()
    return job, None
