"""https://docs.runpod.io/serverless/workers/handler-functions: standard handlers."""

import time

import runpod


def handler(job):
    job_input = job["input"]
    time.sleep(job_input.get("seconds", 0))
    return job_input.get("prompt")


runpod.serverless.start({"handler": handler})
