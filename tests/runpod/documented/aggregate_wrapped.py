"""https://docs.runpod.io/serverless/development/aggregate-outputs: local testing; `start` in a function, guarded."""

import runpod


def handler(job):
    for item in job["input"].get("items", []):
        yield f"Processed: {item}"


def start_handler():
    def wrapper(job):
        generator = handler(job)
        if job.get("id") == "local_test":
            return list(generator)
        return generator

    runpod.serverless.start({"handler": wrapper, "return_aggregate_stream": True})


if __name__ == "__main__":
    start_handler()
