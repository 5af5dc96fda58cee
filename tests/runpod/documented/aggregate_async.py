"""https://docs.runpod.io/serverless/development/aggregate-outputs: combining with async handlers."""

import asyncio

import runpod


async def async_handler(job):
    for item in job["input"].get("items", []):
        await asyncio.sleep(0.001)
        yield f"Async processed: {item}"


runpod.serverless.start({"handler": async_handler, "return_aggregate_stream": True})
