"""A generator handler: each word of a text is one chunk of the stream, and ``output`` is the list of them in the end.

Serve:  supervise handlers/stream_text.py
Ask:    curl localhost:8900/run -d '{"input": {"text": "one word after another"}}', then with its id curl localhost:8900/stream/ID
"""

import time

import runpod

TEXT = "Every word of this text leaves the worker as soon as it is there, and a client may read it long before the last one."


def handler(job):
    """Take ``text`` and ``delay`` (seconds before each word), both optional; yield the words with the space that follows them."""
    given = job["input"] if isinstance(job["input"], dict) else {"text": job["input"]}
    text, delay = given.get("text", TEXT), given.get("delay", 0.1)
    if not isinstance(text, str):
        yield {"error": f"text must be a string, not {type(text).__name__}"}
        return
    if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not 0 <= delay <= 60:
        yield {"error": f"delay must be a number of seconds from 0 to 60, not {delay!r}"}
        return
    words = text.split()
    for index, word in enumerate(words, start=1):
        time.sleep(delay)
        yield word if index == len(words) else f"{word} "


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
