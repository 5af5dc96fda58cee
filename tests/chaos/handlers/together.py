"""A coroutine handler that runs up to four jobs in one worker: the handler of the other house; runs in a worker."""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from pathlib import Path
from typing import Any

from supervisor import serverless

RUN = Path(os.environ["CHAOS_FOLDER"])
GPUS = [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]


def note_start(ticket: str) -> None:
    with open(RUN / "starts" / ticket, "a") as starts:
        starts.write(f"{os.environ['SUPERVISE_WORKER_ID']} {os.getpid()} {time.monotonic():.3f}\n")
    for gpu in GPUS:
        (RUN / "nvml/alloc" / gpu / str(os.getpid())).write_text("300")


def block() -> None:
    """Hold up the loop and all other jobs in it."""
    time.sleep(600)


async def handler(job: dict[str, Any]) -> Any:
    given = job["input"]
    ticket = given["ticket"]
    note_start(ticket)
    do = given["do"]
    if do == "slow":
        serverless.progress_update(job, {"at": 0})
        await asyncio.sleep(given["seconds"])
    elif do == "print":
        for number in range(given["lines"]):
            print(f"{ticket} line {number}")
            await asyncio.sleep(0)
        print(f"{ticket} last line")
    elif do == "raise":
        raise ValueError(f"{ticket} raised")
    elif do == "fail":
        return {"error": f"{ticket} failed on purpose", "left": ticket}
    elif do == "crash":
        os._exit(7)
    elif do == "hang":
        if given["deaf"]:
            block()
        await asyncio.sleep(600)
    return {"ticket": ticket, "sum": zlib.crc32(given.get("payload", "").encode())}


if __name__ == "__main__":
    serverless.start({"handler": handler, "concurrency_modifier": lambda current: min(current + 1, 4)})
