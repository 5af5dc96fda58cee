"""The example handlers, served by a worker."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from supervisor.wire import messages as wire

HANDLERS = Path(__file__).resolve().parents[2] / "handlers"


def progress(messages: list[Any]) -> list[Any]:
    return [json.loads(message.value) for message in messages if isinstance(message, wire.Progress)]


def output(done: wire.Done) -> Any:
    assert done.status == "COMPLETED", done
    assert done.output is not None
    return json.loads(done.output)


def test_my_handler(serve) -> None:
    worker = serve(HANDLERS / "my_handler.py")
    assert worker.ready().kind == "function"
    began = time.monotonic()
    done, before = worker.job({"prompt": "a lighthouse", "steps": 4, "seconds": 0.2, "memory_mib": 3, "refresh": True})
    result = output(done)
    assert {key: result[key] for key in ("prompt", "steps", "worker", "gpus")} == {
        "prompt": "a lighthouse",
        "steps": 4,
        "worker": "gpu0-3",
        "gpus": "0",
    }
    assert 0.2 <= result["seconds"] <= round(time.monotonic() - began, 3)
    assert done.refresh
    assert progress(before)[-1] == {"step": 4, "of": 4, "percent": 100}
    assert "gpu0-3 works on 'a lighthouse': 4 steps in 0.2 s" in worker.log()


def test_my_handler_needs_nothing(serve) -> None:
    worker = serve(HANDLERS / "my_handler.py")
    worker.ready()
    began = time.monotonic()
    done, before = worker.job({})
    assert 2 <= output(done)["seconds"] <= round(time.monotonic() - began, 3)
    assert not done.refresh
    assert progress(before)[-1]["of"] == 20


WRONG: dict[str, list[tuple[Any, str]]] = {
    "my_handler.py": [
        ("x", "input must be an object, not str"),
        ({"steps": 0}, "steps must be a number from 1 to 10000, not 0"),
        ({"seconds": "long"}, "seconds must be a number from 0 to 3600, not 'long'"),
        ({"memory_mib": True}, "memory_mib must be a number from 0 to 65536, not True"),
    ],
    "stream_text.py": [
        ({"text": 5}, "text must be a string, not int"),
        ({"delay": -1}, "delay must be a number of seconds from 0 to 60, not -1"),
    ],
    "async_fetch.py": [
        ({}, "input must have urls, a list of addresses, or url, one of them"),
        ({"urls": ["http://x"] * 21}, "at most 20 urls in one job, not 21"),
        ({"url": "file:///etc/passwd"}, "not an http or https address: 'file:///etc/passwd'"),
        ({"urls": ["http://"]}, "not an http or https address: 'http://'"),
    ],
}


@pytest.mark.parametrize("file", WRONG)
def test_says_what_is_wrong_with_the_input(serve, file: str) -> None:
    worker = serve(HANDLERS / file)
    worker.ready()
    for given, error in WRONG[file]:
        done, _ = worker.job(given)
        assert (done.status, done.error) == ("FAILED", error)


def test_stream_text(serve) -> None:
    worker = serve(HANDLERS / "stream_text.py")
    assert worker.ready().kind == "generator"
    done, before = worker.job({"text": "one  word\nafter another", "delay": 0})
    chunks = [json.loads(message.value) for message in before if isinstance(message, wire.Chunk)]
    assert chunks == output(done) == ["one ", "word ", "after ", "another"]


def test_async_fetch(serve, shelf: str) -> None:
    worker = serve(HANDLERS / "async_fetch.py")
    assert worker.ready().kind == "coroutine"
    urls = [f"{shelf}/plain.txt", f"{shelf}/away", f"{shelf}/none", f"{shelf}/inside", "http://127.0.0.1:1/"]
    done, before = worker.job({"urls": urls})
    pages = output(done)["pages"]
    assert [page["url"] for page in pages] == urls
    assert [(page.get("status"), page.get("bytes")) for page in pages[:3]] == [(200, 5), (200, 5), (404, None)]
    assert all("error" in page and "bytes" not in page for page in pages[2:])
    assert progress(before)[-1] == {"fetched": 5, "of": 5}
