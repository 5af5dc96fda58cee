"""A handler that passes requests on to a server of OpenAI's API on the port in its argument, in the ways of public workers.

Streams are its text, cut anywhere. Errors and results are told as worker-vllm tells them, in its newer and its older way
(`/v1/completions`), or as worker-sglang does (`/v1/embeddings`: the text, and no status).
"""

from __future__ import annotations

import asyncio
import codecs
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import runpod

CUT = 7


async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
    route, body = job["input"]["openai_route"], job["input"].get("openai_input")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    try:
        data = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        writer.write(f"{method} {route} HTTP/1.0\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
        status = int((await reader.readuntil(b"\r\n\r\n")).split()[1])
        if status < 400 and (body or {}).get("stream"):
            async for text in pieces(reader):
                yield text
            return
        text = (await reader.read()).decode()
        if route == "/v1/embeddings":
            for line in text.splitlines():
                yield line.strip()
        elif status >= 400 and route != "/v1/completions":
            yield {"error": {"message": f"vLLM returned HTTP {status}: {text}", "type": "worker_error", "code": None}}
        else:
            yield json.loads(text)
    finally:
        writer.close()


async def pieces(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """The text as it comes, a few letters at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    while data := await reader.read(CUT):
        if text := decoder.decode(data):
            yield text


runpod.serverless.start(
    {"handler": handler, "return_aggregate_stream": True, "concurrency_modifier": lambda current: 4}
)
