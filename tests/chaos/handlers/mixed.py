"""Does whatever a job asks for: the handler of the house whose workers run one job at a time; runs in a worker.

Every start of a job is a line in a file of its own, so the checker can count them. A worker takes fake GPU memory with its first
job and keeps it to its death, as a model does.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from supervisor import serverless

RUN = Path(os.environ["CHAOS_FOLDER"])
GPUS = [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"

Given = dict[str, Any]


def handler(job: dict[str, Any]) -> Any:
    given: Given = job["input"]
    note_start(given["ticket"])
    for gpu in GPUS:
        (RUN / "nvml/alloc" / gpu / str(os.getpid())).write_text(str(given.get("mib", 500)))
    return globals()[f"do_{given['do']}"](job, given)


def note_start(ticket: str) -> None:
    with open(RUN / "starts" / ticket, "a") as starts:
        starts.write(f"{os.environ['SUPERVISE_WORKER_ID']} {os.getpid()} {time.monotonic():.3f}\n")


def proof(given: Given) -> dict[str, Any]:
    """What shows that this very input was worked on."""
    return {"ticket": given["ticket"], "sum": zlib.crc32(given.get("payload", "").encode())}


# --- that end well -----------------------------------------------------------------------------------------------------------


def do_echo(job: object, given: Given) -> Any:
    return proof(given)


def do_plain(job: object, given: Given) -> Any:
    return given["value"]


def do_slow(job: dict[str, Any], given: Given) -> Any:
    until = time.monotonic() + given["seconds"]
    while (left := until - time.monotonic()) > 0:
        serverless.progress_update(job, {"left": round(left, 2)})
        time.sleep(min(left, 0.05))
    return proof(given)


def do_progress(job: dict[str, Any], given: Given) -> Any:
    for number in range(given["count"]):
        serverless.progress_update(job, {"at": number, "pad": "p" * 200})
    return proof(given)


def do_print(job: object, given: Given) -> Any:
    for number in range(given["lines"]):
        print(f"{given['ticket']} line {number} {'x' * 60}")
    subprocess.run(["echo", f"{given['ticket']} from a child"], check=True)
    print(f"{given['ticket']} last line")
    return proof(given)


def do_large(job: object, given: Given) -> Any:
    return {**proof(given), "large": "L" * given["size"]}


def do_refresh(job: object, given: Given) -> Any:
    return {**proof(given), "refresh_worker": True}


def do_secret(job: dict[str, Any], given: Given) -> Any:
    time.sleep(given["seconds"])
    return {**proof(given), "digest": hashlib.sha256(job["s3Config"]["accessSecret"].encode()).hexdigest()}


def do_litter(job: object, given: Given) -> Any:
    for number in range(20):
        folder = Path(os.environ["TMPDIR"], f"{given['ticket']}-{number}")
        folder.mkdir(exist_ok=True)
        (folder / "file").write_text("litter")
    return {**proof(given), "refresh_worker": given["refresh"]}


def do_daemon(job: object, given: Given) -> Any:
    """Leaves a child in a session of its own, and one whose parent is dead; none of them heeds SIGTERM."""
    sleeper = [sys.executable, "-c", SLEEPER]
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # Kept on a list, or its end would be a ResourceWarning.
    KEPT.append(subprocess.Popen(sleeper, start_new_session=True, **quiet))
    middle = f"import subprocess; subprocess.Popen({sleeper!r}, start_new_session=True)"
    subprocess.run([sys.executable, "-c", middle], check=True, **quiet)
    return {**proof(given), "refresh_worker": given["refresh"]}


KEPT: list[subprocess.Popen[bytes]] = []


async def do_coroutine(job: object, given: Given) -> Any:
    await asyncio.sleep(given["seconds"])
    return proof(given)


# --- streams -----------------------------------------------------------------------------------------------------------------


def do_stream(job: object, given: Given) -> Iterator[Any]:
    start = f"{os.getpid()}.{time.monotonic()}"
    for number in range(given["count"]):
        if number == given.get("raises_at"):
            raise RuntimeError(f"{given['ticket']} breaks off")
        yield {"ticket": given["ticket"], "start": start, "n": number}
        time.sleep(given["pause"])


async def do_astream(job: object, given: Given) -> AsyncIterator[Any]:
    start = f"{os.getpid()}.{time.monotonic()}"
    for number in range(given["count"]):
        yield {"ticket": given["ticket"], "start": start, "n": number}
        await asyncio.sleep(given["pause"])


# --- that end badly ----------------------------------------------------------------------------------------------------------


def do_fail(job: object, given: Given) -> Any:
    return {"error": f"{given['ticket']} failed on purpose", "left": given["ticket"]}


def do_raise(job: object, given: Given) -> Any:
    raise ValueError(f"{given['ticket']} raised")


def do_crash(job: object, given: Given) -> Any:
    print(f"{given['ticket']} last words")
    how = given["how"]
    if how == "exit":
        sys.exit(9)
    if how == "_exit":
        sys.stdout.flush()
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)


def do_hang(job: object, given: Given) -> Any:
    if given["deaf"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


if __name__ == "__main__":
    serverless.start({"handler": handler, "return_aggregate_stream": True, "unknown_key": 1})
