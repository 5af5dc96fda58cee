"""https://docs.runpod.io/serverless/workers/concurrent-handler: each job waits until all have come."""

import asyncio

import runpod

EXPECTED = 3
arrived = []
all_here = asyncio.Event()


async def process_request(job):
    arrived.append(job["id"])
    if len(arrived) == EXPECTED:
        all_here.set()
    await all_here.wait()
    return f"Processed: {job['input']['message']}"


def adjust_concurrency(current_concurrency):
    return min(current_concurrency + 1, EXPECTED)


if __name__ == "__main__":
    runpod.serverless.start({"handler": process_request, "concurrency_modifier": adjust_concurrency})
