"""``serverless.upload_file`` in a real worker, against a server that speaks S3's protocol."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor.errors import UploadError
from supervisor.upload import bucket_of, region_of

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
ID = "AKIAIOSFODNN7EXAMPLE"
BUCKET = "pictures"
UPLOADS = "from supervisor import serverless\n"
UPLOADS += "def handler(job): return serverless.upload_file(job, *job['input'])\n"


SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a server that has the bucket; in a process of its own, because threads and the forks of tests do not mix."""
    pytest.importorskip("boto3", reason="the extra s3 is not installed")
    pytest.importorskip("moto", reason="moto, the S3 server of the tests, is not installed")
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        url = server.stdout.readline().decode().strip()
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT")).close()
        yield url
        server.kill()


def config(url: str, **changes: Any) -> dict[str, Any]:
    return {"endpointUrl": url, "accessId": ID, "accessSecret": SECRET, "bucketName": BUCKET, **changes}


def uploaded(done: Any) -> str:
    assert done.status == "COMPLETED", done
    return str(json.loads(done.output))


def read(url: str) -> tuple[bytes, Any]:
    with urllib.request.urlopen(url) as answer:
        return answer.read(), answer.headers


def test_files_go_to_the_bucket_of_the_job(serve, s3, tmp_path):
    child = serve(UPLOADS)
    for name, kind in [
        ("image.png", "image/png"),
        ("clip.mp4", "video/mp4"),
        ("data.tar.gz", "application/octet-stream"),
        ("no_suffix", "application/octet-stream"),
        ("ünd so weiter.txt", "text/plain"),
    ]:
        (tmp_path / name).write_bytes(b"content")
        url = uploaded(child.job([name], "job-1", {"s3Config": config(s3)}))
        parts = urllib.parse.urlsplit(url)
        query = urllib.parse.parse_qs(parts.query)
        assert (f"{parts.scheme}://{parts.netloc}", urllib.parse.unquote(parts.path)) == (s3, f"/{BUCKET}/job-1/{name}")
        assert (query["X-Amz-Algorithm"], query["X-Amz-Expires"]) == (["AWS4-HMAC-SHA256"], ["604800"])
        content, headers = read(url)
        assert (content, headers["Content-Type"]) == (b"content", kind)
        assert SECRET not in urllib.parse.unquote(url)


def test_the_key_can_be_chosen_and_a_large_file_goes_in_parts(serve, s3, tmp_path):
    child = serve(UPLOADS)
    (tmp_path / "large").write_bytes(content := bytes(9_000_000))
    url = uploaded(child.job([str(tmp_path / "large"), "a/b.bin"], "job-1", {"s3Config": config(s3)}))
    assert urllib.parse.urlsplit(url).path == f"/{BUCKET}/a/b.bin"
    got, headers = read(url)
    assert got == content
    assert headers["ETag"].endswith('-2"')


def test_without_a_config_of_the_job_the_variables_say_where_to(serve, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("BUCKET_ACCESS_KEY_ID", ID)
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("BUCKET_NAME", BUCKET)
    child = serve(
        "import os\nfrom supervisor import serverless\n"
        "def handler(job):\n    os.environ['BUCKET_ENDPOINT_URL'] = job['input']\n"
        "    return serverless.upload_file(job, __file__)"
    )
    url = uploaded(child.job(s3, "job-1"))
    assert urllib.parse.urlsplit(url).path == f"/{BUCKET}/job-1/handler.py"
    assert read(url)[0] == (tmp_path / "handler.py").read_bytes()


def test_uploads_from_threads_side_by_side(serve, s3, tmp_path):
    child = serve(
        "import asyncio\nfrom supervisor import serverless\n"
        "async def handler(job):\n"
        "    serverless.upload_file(job, __file__, 'first')\n"
        "    keys = [f'{n}.txt' for n in range(4)]\n"
        "    sent = [asyncio.to_thread(serverless.upload_file, job, __file__, key) for key in keys]\n"
        "    return await asyncio.gather(*sent)"
    )
    done = child.job(None, "job-1", {"s3Config": config(s3)})
    content = (tmp_path / "handler.py").read_bytes()
    assert [read(url)[0] for url in json.loads(done.output)] == [content] * 4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a bucket that is not there": ({"bucketName": "nowhere"}, "image.png could not be uploaded: S3UploadFailedError"),
    "no URL": ({"endpointUrl": f"not a URL {SECRET}"}, "image.png could not be uploaded: ValueError"),
    "a bucket's name that is none": ({"bucketName": f"{ID}?"}, "image.png could not be uploaded: ParamValidationError"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_refusal_tells_why_and_nothing_of_the_config(serve, s3, tmp_path, why):
    changes, message = REFUSED[why]
    child = serve(UPLOADS)
    (tmp_path / "image.png").touch()
    done = child.job(["image.png"], "job-1", {"s3Config": config(s3, **changes)})
    report = json.loads(done.error)
    assert report["error_message"].startswith(message)
    assert report["error_type"] == "<class 'supervisor.errors.UploadError'>"
    for secret in (SECRET, ID, s3.removeprefix("http://"), *map(str, changes.values())):
        assert secret not in done.error
        assert secret not in child.written_so_far()


def test_a_file_that_is_not_there_is_pythons_own_error(serve):
    pytest.importorskip("boto3", reason="the extra s3 is not installed")
    child = serve(UPLOADS)
    done = child.job(["nowhere.png"], "job-1", {"s3Config": config("http://127.0.0.1:1")})
    assert json.loads(done.error)["error_message"] == "[Errno 2] No such file or directory: 'nowhere.png'"


def test_without_boto3_it_says_what_to_install(serve):
    child = serve("import sys\nsys.modules['boto3'] = None\n" + UPLOADS)
    done = child.job(["handler.py"], "job-1", {"s3Config": config("http://127.0.0.1:1")})
    message = json.loads(done.error)["error_message"]
    assert message == "upload_file needs boto3: pip install 'supervise-gpu[s3]'"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the job's s3Config lacks endpointUrl, accessId, accessSecret, bucketName"),
        ("a string", "the job's s3Config lacks endpointUrl, accessId, accessSecret, bucketName"),
        (config("http://h", bucketName=""), "the job's s3Config lacks bucketName"),
        (config("http://h", accessSecret=7), "the job's s3Config lacks accessSecret"),
        (
            None,
            "no bucket to upload to: the job has no s3Config, and BUCKET_ENDPOINT_URL, BUCKET_SECRET_ACCESS_KEY is not set",
        ),
    ],
)
def test_what_is_missing_is_named(monkeypatch, given, message):
    monkeypatch.delenv("BUCKET_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("BUCKET_ACCESS_KEY_ID", ID)
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "")
    with pytest.raises(UploadError) as raised:
        bucket_of({"id": "a", "s3Config": given})
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://bucket.s3.us-west-2.amazonaws.com", "us-west-2"),
        ("https://s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("https://fra1.digitaloceanspaces.com", "fra1"),
        ("https://bucket.nyc3.digitaloceanspaces.com/", "nyc3"),
        ("https://s3.amazonaws.com", None),
        ("https://s3.of-my-own.example.com", None),
        ("https://account.r2.cloudflarestorage.com", None),
        ("http://127.0.0.1:9000", None),
    ],
)
def test_the_region_is_in_the_endpoints_name(url, region):
    assert region_of(url) == region
