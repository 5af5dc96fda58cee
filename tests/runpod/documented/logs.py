"""runpod-python, docs/serverless/functions/logging.md"""

import runpod

log = runpod.RunPodLogger()


def handler(job):
    log.debug("a debug message")
    log.info("an info message", job["id"])
    log.warn("a warning")
    log.error("an error message")
    return "logged"


runpod.serverless.start({"handler": handler})
