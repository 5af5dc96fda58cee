"""A job's ``s3Config``: its handler gets it, and when the job has ended it is nowhere, while the supervisor runs on."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Gate, Runs

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
CONFIG = {"accessId": "AKIAIOSFODNN7EXAMPLE", "accessSecret": SECRET, "bucketName": "b", "endpointUrl": "http://h"}

HANDLER = """
import hashlib, os
from supervisor import serverless

def handler(job):
    serverless.progress_update(job, "running")
    open(job["input"]["gate"]).read()
    exec(job["input"]["end"])
    return hashlib.sha256(job["s3Config"]["accessSecret"].encode()).hexdigest()
"""

ENDS = [
    ("", "COMPLETED"),
    ("raise ValueError('no')", "FAILED"),
    ("os.kill(os.getpid(), 9)", "FAILED"),
    ("", "CANCELLED"),
]


def holders(*folders: Path) -> Iterator[Path]:
    """The files in which the secret is, freed pages of a database and its log included."""
    for folder in folders:
        for parent, _, names in os.walk(folder):  # unlike rglob, it does not mind that a worker's folder ends with it
            for path in (Path(parent, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file() and SECRET.encode() in path.read_bytes():
                        yield path


def test_when_a_job_has_ended_its_secret_is_nowhere(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    run = supervise(supervise.write("keeps.py", HANDLER), "--gpus", "none").ready()
    folders = supervise.folder, supervise.temporary
    for end, status in ENDS:
        gate = make_gate()
        job = run.run({"gate": gate.path, "end": end}, s3Config=CONFIG)
        gate.reached()
        kept = list(holders(*folders))
        assert [path.parent.name for path in kept] == ["store.db.secrets"], kept
        assert kept[0].stat().st_mode & 0o777 == 0o600
        assert SECRET not in str(run.status(job))

        if status == "CANCELLED":
            run.post(f"/cancel/{job}")
        gate.open()
        ended = run.ended(job)
        assert ended["status"] == status
        assert ended.get("output") in (None, hashlib.sha256(SECRET.encode()).hexdigest())
        assert not list(holders(*folders)), status
        answers = [run.ask("GET", path) for path in ("/workers", "/health", f"/status/{job}", f"/stream/{job}")]
        assert not [answer for answer in answers if SECRET.encode() in answer.body]
    assert run.stop() == 0
    assert not list(holders(*folders))
    assert SECRET not in str(run) + str(run.stdout)
