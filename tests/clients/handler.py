"""A handler with a way for everything that RunPod's clients can ask for; ``input`` says which."""

import time

from supervisor import serverless


def handler(job):
    given = job["input"]
    kind = given["kind"]
    if kind == "stream":
        return (f"chunk {number}" for number in range(3))
    if kind == "wait":  # until it is cancelled
        serverless.progress_update(job, "waits")
        open(given["reached"], "w").close()  # a FIFO: the test reads it
        while True:
            time.sleep(60)
    if kind == "fail":
        return {"error": {"code": 7}}
    return {"echo": given}


if __name__ == "__main__":
    serverless.start({"handler": handler, "return_aggregate_stream": True})
