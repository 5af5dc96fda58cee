"""https://docs.runpod.io/serverless/handlers/handler-additional-controls: refresh worker, asynchronous."""

import asyncio

import runpod


async def async_handler(job):
    results = []
    for number in range(job["input"]["tokens"]):
        await asyncio.sleep(0.001)
        results.append(f"token {number}")
    return {"refresh_worker": True, "job_results": results}


runpod.serverless.start({"handler": async_handler, "return_aggregate_stream": True})
