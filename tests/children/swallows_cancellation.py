"""A coroutine handler that takes a cancellation for something to be ignored."""

import asyncio
import contextlib


async def handler(job):
    if job["input"] != "sleep":
        return job["input"]
    print("good night", flush=True)
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        print("I do not want to", flush=True)
