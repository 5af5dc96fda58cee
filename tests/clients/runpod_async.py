"""What a user of ``runpod`` writes with asyncio: ``python runpod_async.py FIFO``. Prints what each call gave, as JSON."""

import asyncio
import json
import sys
from pathlib import Path

import aiohttp
import runpod

runpod.api_key = "key"


async def main():
    said = {}
    async with aiohttp.ClientSession() as session:
        endpoint = runpod.AsyncioEndpoint("handler", session)
        job = await endpoint.run({"kind": "echo", "n": 1})
        said["output"] = await job.output(timeout=30)
        said["status"] = await job.status()
        stream = await endpoint.run({"kind": "stream"})
        said["stream"] = [chunk async for chunk in stream.stream()]
        waiting = await endpoint.run({"kind": "wait", "reached": sys.argv[1]})
        await asyncio.to_thread(Path(sys.argv[1]).read_bytes)
        said["in_progress"] = await waiting.status()
        queued = await endpoint.run({"kind": "echo"})
        said["health"] = await endpoint.health()
        said["purge_queue"] = await endpoint.purge_queue()
        said["purged"] = await queued.status()
        said["cancel"] = await waiting.cancel()
        said["cancelled"] = await waiting.status()
    print(json.dumps(said))


asyncio.run(main())
