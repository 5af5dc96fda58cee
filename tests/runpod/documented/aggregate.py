"""https://docs.runpod.io/serverless/development/aggregate-outputs: yields each result and returns the list of them."""

import runpod


def handler(job):
    results = []
    for item in job["input"].get("items", []):
        result = f"Processed: {item}"
        yield result
        results.append(result)
    return results


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
