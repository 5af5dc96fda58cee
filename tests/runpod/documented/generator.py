"""https://docs.runpod.io/serverless/workers/handler-functions: streaming handlers."""

import runpod


def streaming_handler(job):
    for count in range(job["input"]["outputs"]):
        yield f"output {count}"


runpod.serverless.start({"handler": streaming_handler})
