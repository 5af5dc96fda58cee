"""https://docs.runpod.io/serverless/workers/handler-functions: progress updates."""

import runpod


def handler(job):
    steps = job["input"]["steps"]
    for step in range(steps):
        runpod.serverless.progress_update(job, f"Step {step + 1}/{steps}")
    return "done"


runpod.serverless.start({"handler": handler})
