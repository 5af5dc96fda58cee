"""Handlers as RunPod's documentation writes them, each in a real worker: the same results with the package and without it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from supervisor.wire import messages as wire

DOCUMENTED = Path(__file__).parent / "documented"
BUCKET = "results"
BUCKET_VARIABLES = ("BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY")


class Case(NamedTuple):
    """What a job of ``handler`` is to become; ``chunks`` and ``progress`` in full."""

    handler: str
    input: Any
    output: Any = None
    error: str | None = None
    chunks: list[Any] = []
    progress: list[Any] = []
    refresh: bool = False
    kind: str = "function"


PROCESSED = ["Processed: 1", "Processed: 2"]
SENTIMENTS = [{"text": "a", "sentiment": "positive"}]
TOKENS = {"job_results": ["token 0", "token 1"]}
MISSING_TEXT = json.dumps(["text is a required input."])

CASES = [
    Case("standard", {"prompt": "hello"}, "hello"),
    Case("standard", {}, None),
    Case("progress", {"steps": 2}, "done", progress=["Step 1/2", "Step 2/2"]),
    Case("refresh_sync", {"tokens": 2}, TOKENS, refresh=True),
    Case("refresh_async", {"tokens": 2}, TOKENS, refresh=True, kind="coroutine"),
    Case("refresh_always", {}, {"output": "Job completed successfully"}, refresh=True),
    Case("generator", {"outputs": 2}, [], chunks=["output 0", "output 1"], kind="generator"),
    Case("aggregate", {"items": [1, 2]}, PROCESSED, chunks=PROCESSED, kind="generator"),
    Case("aggregate", {}, [], kind="generator"),
    Case("aggregate_returned", {"items": ["a"]}, SENTIMENTS, chunks=SENTIMENTS),
    Case("aggregate_returned", {}, error="No items provided"),
    Case("aggregate_returned", {"items": ["a"], "task_type": "?"}, error="Unknown task type: ?"),
    Case("aggregate_wrapped", {"items": [1]}, ["Processed: 1"], chunks=["Processed: 1"]),
    Case("aggregate_async", {"items": [1]}, ["Async processed: 1"], chunks=["Async processed: 1"], kind="async_generator"),
    Case("error", {"seed": 1, "prompt": "p"}, "Input validation successful."),
    Case("error", {}, error="Input is missing the 'seed' key."),
    Case("error", {"seed": 1}, error='{"type":"ValidationError","message":"Missing required field: prompt"}'),
    Case("error", {"seed": 1, "prompt": "wait"}, error="Request timed out"),
    Case("fitness", {}, {"passed": ["environment", "connectivity"]}),
    Case("validator", {"text": "lighthouse"}, {"output": "lighthouse", "scale": None}),
    Case("validator", {"text": "lighthouse", "max_length": 5, "scale": 2}, {"output": "light", "scale": 2.0}),
    Case("validator", {}, error=MISSING_TEXT),
    Case("validator", {"text": 1, "scale": -1.0, "n": 2}, error=json.dumps([
        "Unexpected input. n is not a valid input option.",
        "text should be <class 'str'> type, not <class 'int'>.",
        "scale does not meet the constraints.",
    ], separators=(",", ":"))),
    Case("debugger", {"n": 21}, {"twice": 42}),
    Case("logs", {}, "logged"),
    Case("model_at_import", {"prompt": "hi"}, "large: hi"),
]  # fmt: skip


@pytest.mark.parametrize("handler", list(dict.fromkeys(case.handler for case in CASES)))
def test_documented(serve, handler: str) -> None:
    worker = serve(DOCUMENTED / f"{handler}.py", argv=["--model-tag", "large"] if handler == "model_at_import" else [])
    kind = worker.ready().kind
    for number, case in enumerate(
        [case for case in CASES if case.handler == handler] * 2
    ):  # each job twice, in one worker
        done, before = worker.job(case.input, f"job-{number}")
        assert kind == case.kind
        assert (done.status, done.error) == ("COMPLETED" if case.error is None else "FAILED", case.error), worker.log()
        assert (json.loads(done.output) if done.output else None) == case.output
        assert done.refresh == case.refresh
        assert [json.loads(message.value) for message in before if isinstance(message, wire.Chunk)] == case.chunks
        assert [json.loads(message.value) for message in before if isinstance(message, wire.Progress)] == case.progress


def test_every_file_is_served() -> None:
    others = {"model", "cleanup", "concurrent_handler", "download", "s3_config", "upload"}
    assert {path.stem for path in DOCUMENTED.glob("*.py")} == others | {case.handler for case in CASES}


def result(done: wire.Done) -> Any:
    assert done.status == "COMPLETED", done.error
    assert done.output is not None
    return json.loads(done.output)


def test_the_package_is_the_one_that_is_installed(serve, tmp_path: Path, installed: str | None) -> None:
    (tmp_path / "handler.py").write_text(
        "import runpod\nrunpod.serverless.start({'handler': lambda job: runpod.__version__})\n"
    )
    worker = serve(tmp_path / "handler.py")
    worker.ready()
    standin = str(result(worker.job({})[0])).endswith("+supervise.standin")
    assert standin == (installed is None)


def test_what_is_raised(serve) -> None:
    worker = serve(DOCUMENTED / "error.py")
    worker.ready()
    done, _ = worker.job({"seed": 1, "prompt": "raise"})
    assert done.status == "FAILED"
    report = json.loads(done.error)
    assert report["error_type"] == "<class 'RuntimeError'>"
    assert report["error_message"] == "something went wrong"


def test_refresh_by_the_config_also_where_the_handler_raises(serve) -> None:
    worker = serve(DOCUMENTED / "refresh_always.py")
    assert worker.ready().refresh_worker
    done, _ = worker.job({"fail": True})
    assert done.status == "FAILED"
    assert done.refresh


def test_jobs_run_together(serve) -> None:
    worker = serve(DOCUMENTED / "concurrent_handler.py")
    assert worker.ready().capacity == 2
    for number in range(3):
        worker.send({"message": number}, f"job-{number}")
    ended: dict[str, Any] = {}
    while len(ended) < 3:
        message = worker.receive()
        if isinstance(message, wire.Done):
            ended[message.job] = result(message)
    assert ended == {f"job-{number}": f"Processed: {number}" for number in range(3)}


def test_a_fitness_check_that_fails(serve) -> None:
    refused = serve(DOCUMENTED / "fitness.py", REQUIRED="MODEL_PATH").receive()
    assert isinstance(refused, wire.LoadFailed)
    assert refused.reason == "fitness"
    assert "check_environment" in refused.message
    assert "Missing environment variables: MODEL_PATH" in refused.message


def test_download(serve, shelf: str) -> None:
    worker = serve(DOCUMENTED / "download.py")
    worker.ready()
    names = ["plain.txt", "query.jpg?signed=1", "named", "renamed.txt", "nameless", "away"]
    urls = [*(f"{shelf}/{name}" for name in names), None]
    for job in ("job-1", "job-2"):
        done, _ = worker.job({"urls": urls, "archive": f"{shelf}/bundle"}, job)
        assert result(done) == {
            "texts": ["plain", "signed", "cat", "dog", "nothing", "plain", None],
            "extensions": [".txt", ".jpg", ".PNG", ".gz", "", "", None],
            "folder": "downloaded_files",
            "absolute": True,
            "type": "zip",
            "original_name": "bundle.zip",
            "extracted": ["deep", "one.txt"],
            "left": [],
        }


def test_cleanup(serve, shelf: str) -> None:
    worker = serve(DOCUMENTED / "cleanup.py")
    worker.ready()
    for _ in range(2):
        assert result(worker.job({"image_url": f"{shelf}/plain.txt"})[0]) == {"output": "Processed image plain.txt"}
    assert worker.job({"image_url": f"{shelf}/none"})[0].error == "Failed to download image"


def test_upload_without_a_bucket(serve, tmp_path: Path) -> None:
    worker = serve(DOCUMENTED / "upload.py", **dict.fromkeys(BUCKET_VARIABLES, ""))
    worker.ready()
    results = [result(worker.job({"files": True}, job)[0]) for job in ("job-1", "job-2")]
    for job, found in zip(("job-1", "job-2"), results, strict=True):
        assert found["file"] == f"local_upload/{job}/file.png"
        assert (tmp_path / found["memory"]).read_bytes() == b"some text"
        for path in (found["image"], *found["images"]):
            assert path.startswith("simulated_uploaded/")
            assert path.endswith(".png")
            assert (tmp_path / path).read_bytes() == b"an image"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an S3 server of this machine that has the bucket ``BUCKET``."""
    reason = "an S3 server for tests: pip install 'moto[s3,server]'"
    server_of = pytest.importorskip("moto.server", reason=reason)
    boto3 = pytest.importorskip("boto3", reason=reason)
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
        )
        client.create_bucket(Bucket=BUCKET)
        yield url
    finally:
        server.stop()


def fetched(url: str) -> tuple[bytes, str]:
    """What a URL gives, and its type; by no proxy."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=40) as response:
        return response.read(), response.headers["Content-Type"]


def test_upload_to_the_bucket_of_the_environment(serve, bucket: str) -> None:
    credentials = dict(zip(BUCKET_VARIABLES, (bucket, "key", "secret"), strict=True))
    worker = serve(DOCUMENTED / "upload.py", **credentials)
    worker.ready()
    found = result(worker.job({}, "job-1")[0])
    assert fetched(found["image"]) == (b"an image", "image/png")
    assert found["image"].startswith(f"{bucket}/{BUCKET}/job-1/")
    assert found["file"].startswith(f"{bucket}/{BUCKET}/deep/down/file.png?")
    assert fetched(found["file"])[0] == b"an image"
    assert fetched(found["memory"])[0] == b"some text"
    assert "X-Amz-Expires=604800" in found["memory"]


def test_upload_to_the_bucket_of_the_request(serve, bucket: str) -> None:
    config = {"endpointUrl": bucket, "accessId": "key", "accessSecret": "secret", "bucketName": BUCKET}
    worker = serve(DOCUMENTED / "s3_config.py", **dict.fromkeys(BUCKET_VARIABLES, ""))
    worker.ready()
    found = result(worker.job({}, "job-1", {"s3Config": config})[0])
    assert fetched(found["file"])[0] == b"for job-1"
    assert found["memory"].startswith(f"{bucket}/{BUCKET}/job-1/memory.txt?")
    assert fetched(found["memory"])[0] == b"some text"
    assert found["plain"] == [f"{bucket}/{BUCKET}/job-1/job-1.txt"]


def test_upload_without_boto3_says_what_to_install(serve, tmp_path: Path, no_package: None) -> None:
    (tmp_path / "boto3.py").write_text("raise ImportError('there is no boto3')\n")
    (tmp_path / "handler.py").write_text(
        "import runpod\nfrom runpod.serverless.utils import upload_in_memory_object as upload\n"
        "runpod.serverless.start({'handler': lambda job: upload('name', b'data', job['s3Config'])})\n"
    )
    worker = serve(tmp_path / "handler.py")
    worker.ready()
    config = {"endpointUrl": "http://127.0.0.1:1", "accessId": "key", "accessSecret": "secret"}
    done, _ = worker.job({}, extras={"s3Config": config})
    assert "pip install 'supervise-gpu[s3]'" in json.loads(done.error)["error_message"]
