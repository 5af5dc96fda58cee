"""The program's own secrets, and those in what it is told: in none of its words, answers, files or children."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Runs, Supervise

KEY, FILE_KEY, SIGNING = "key-of-a-variable-7f3a", "key-of-a-file-91cc", "signing-secret-55d0"
USER, PASSWORD, TOKEN = "hook-user-2b", "hook-password-8e", "hook-token-c4"
BUCKET = "bucket-secret-d1"
WRONG = "wrong-key-e7"

ALL = (KEY, FILE_KEY, SIGNING, USER, PASSWORD, TOKEN, BUCKET, WRONG)

HANDLER = """
import os
from supervisor import serverless

def handler(job):
    serverless.progress_update(job, "works")
    print("environment", sorted(name for name in os.environ if "KEY" in name or "SECRET" in name))
    if job["input"] == "raises":
        raise ValueError("no")
    if job["input"] == "dies":
        os.kill(os.getpid(), 9)
    return job["input"]
"""


def answers(run: Supervise, jobs: list[str]) -> Iterator[tuple[str, bytes]]:
    """All that the API tells, right and wrong, about these jobs and itself."""
    paths = [
        "/health",
        "/requests",
        "/workers",
        "/gpus",
        "/stats",
        "/metrics",
        "/snapshot",
        "/openapi.json",
        "/docs",
        "/no",
    ]
    for path in paths + [f"/{what}/{job}" for job in jobs for what in ("status", "stream", "logs", "status-sync")]:
        answer = run.ask("GET", path)
        yield path, repr(answer.headers).encode() + answer.body
    bodies: list[Any] = [
        {"input": 1, "webhook": f"ftp://{USER}:{PASSWORD}@host/{TOKEN}"},
        {"input": 1, "webhook": f"http://{USER}:{PASSWORD}@[host/{TOKEN}"},
        {"input": 1, "s3Config": [BUCKET]},
        {"input": 1, "s3Config": BUCKET},
        f'{{"input": 1, "s3Config": {{"accessSecret": "{BUCKET}"}}'.encode(),
    ]
    for body in bodies:
        answer = run.ask("POST", "/run", body)
        assert answer.status == 400
        yield str(body), answer.body
    for headers in ({"Authorization": f"Bearer {WRONG}"}, {"Authorization": WRONG}, {"X-Api-Key": WRONG}):
        answer = run.ask("GET", f"/health?key={WRONG}", headers={"Authorization": "", **headers})
        assert answer.status == 401
        yield str(headers), answer.body


def seen_in_children(runs: Runs, own: int) -> Iterator[str]:
    """The command lines of all processes, and the environments of all but the program's own."""
    for pid in runs.processes():
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{pid}/cmdline").read_text()
            if pid != own:
                yield Path(f"/proc/{pid}/environ").read_text()


def test_no_secret_is_told(supervise: Runs, free_port: int) -> None:
    keys = supervise.folder / "keys"
    keys.write_text(f"{FILE_KEY}\n")
    run = supervise(
        supervise.write("told.py", HANDLER),
        *("--simulate-gpus", 2, "--log-format", "json", "--api-key-file", keys),
        *("--webhook-retries", 1, "--webhook-delay", "50ms", "--webhook-timeout", "2s"),
        env={"SUPERVISE_API_KEYS": KEY, "SUPERVISE_WEBHOOK_SECRET": SIGNING},
    )
    run.port = int(run.wait_for_line(r"listening on http://\S+:(\d+)")[1])
    run.headers["Authorization"] = f"Bearer {KEY}"
    hook = f"http://{USER}:{PASSWORD}@127.0.0.1:{free_port}/{TOKEN}?token={TOKEN}#{TOKEN}"  # nobody listens there
    unusable = f"http://{USER}:{PASSWORD}@{'x' * 70}.invalid/{TOKEN}"
    given = [("fine", hook), ("raises", unusable), ("dies", hook)]
    options = {"s3Config": {"accessSecret": BUCKET}}
    jobs = [run.run(name, webhook=url, **options) for name, url in given]
    assert [run.ended(job)["status"] for job in jobs] == ["COMPLETED", "FAILED", "FAILED"]
    for job in jobs:
        run.wait_for_line(f"webhook of job {job} to .* given up")
    run.headers["Authorization"] = f"Bearer {FILE_KEY}"

    told = list(answers(run, jobs))
    assert [(asked, secret) for asked, text in told for secret in ALL if secret.encode() in text] == []
    children = list(seen_in_children(supervise, run.pid))
    assert len(children) > 6  # the template, two workers, the reader of GPUs
    assert [secret for text in children for secret in ALL if secret in text] == []
    assert run.stop() == 0
    said = run.stderr.whole() + run.stdout.whole()
    assert "environment []" in said
    assert [secret for secret in ALL if secret in said] == []
    files = [path for path in supervise.folder.rglob("*") if path.is_file()]
    held = {
        (path.name, secret) for path in files if path != keys for secret in ALL if secret.encode() in path.read_bytes()
    }
    # A job keeps its webhook as it was given; the file is its owner's alone.
    assert held <= {(name, secret) for name in ("store.db", "store.db-wal") for secret in (USER, PASSWORD, TOKEN)}
