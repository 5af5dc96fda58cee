"""https://docs.runpod.io/serverless/handlers/handler-additional-controls: refresh worker, synchronous."""

import runpod


def sync_handler(job):
    results = [f"token {number}" for number in range(job["input"]["tokens"])]
    return {"refresh_worker": True, "job_results": results}


runpod.serverless.start({"handler": sync_handler, "return_aggregate_stream": True})
