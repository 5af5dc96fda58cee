"""runpod-python, docs/serverless/worker.md: worker refresh, by the config, also where the handler raises."""

from runpod.serverless import start


def handler(job):
    if job["input"].get("fail"):
        raise ValueError("no luck")
    return {"output": "Job completed successfully"}


start({"handler": handler, "refresh_worker": True})
