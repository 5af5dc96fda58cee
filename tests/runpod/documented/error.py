"""https://docs.runpod.io/serverless/development/error-handling: an error of text, a structured one, one raised, a time-out."""

import signal

import runpod


class OutOfTimeError(Exception):
    pass


def out_of_time(signum, frame):
    raise OutOfTimeError("Operation timed out")


def handler(job):
    job_input = job["input"]
    if not job_input.get("seed", False):
        return {"error": "Input is missing the 'seed' key."}
    if "prompt" not in job_input:
        return {"error": {"type": "ValidationError", "message": "Missing required field: prompt"}}
    if job_input["prompt"] == "wait":
        signal.signal(signal.SIGALRM, out_of_time)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            signal.pause()
        except OutOfTimeError:
            return {"error": "Request timed out"}
    if job_input["prompt"] == "raise":
        raise RuntimeError("something went wrong")
    return "Input validation successful."


runpod.serverless.start({"handler": handler})
