"""https://docs.runpod.io/serverless/development/aggregate-outputs: processing multiple items, by a generator that is returned."""

import runpod


def analyze_items(items, task_type):
    for item in items:
        if task_type == "sentiment":
            yield {"text": item, "sentiment": "positive"}
        else:
            yield {"error": f"Unknown task type: {task_type}"}


def handler(job):
    items = job["input"].get("items", [])
    if not items:
        return {"error": "No items provided"}
    return analyze_items(items, job["input"].get("task_type", "sentiment"))


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
