"""The quick start: an ordinary RunPod handler that works in steps, tells its progress, and keeps the memory that it is asked for.

Serve:  supervise handlers/my_handler.py                             (no GPU here? add --simulate-gpus 2)
Ask:    curl localhost:8900/runsync -d '{"input": {"prompt": "a lighthouse", "memory_mib": 256, "refresh": true}}'
"""

import os
import time

import runpod

kept = []  # what a model would be: it stays until the worker ends


def handler(job):
    """Take ``prompt``, ``steps``, ``seconds``, ``memory_mib`` and ``refresh``, all optional; say what was done, and where."""
    given = job["input"]
    if not isinstance(given, dict):
        return {"error": f"input must be an object, not {type(given).__name__}"}
    try:
        steps = int(number(given, "steps", 20, 1, 10_000))
        seconds = number(given, "seconds", 2, 0, 3600)
        memory_mib = int(number(given, "memory_mib", 0, 0, 65_536))
    except ValueError as error:
        return {"error": str(error)}
    prompt = str(given.get("prompt", "a quiet harbour at dawn"))

    worker = os.environ.get("RUNPOD_POD_ID", "a worker without a name")
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    print(f"{worker} works on {prompt!r}: {steps} steps in {seconds:g} s")
    if memory_mib:
        kept.clear()
        kept.append(bytearray(b"\1") * (memory_mib << 20))  # written to: memory that was only promised does not count
        print(f"{worker} keeps {memory_mib} MiB")

    began = time.monotonic()
    for step in range(1, steps + 1):
        time.sleep(max(0.0, began + seconds * step / steps - time.monotonic()))
        runpod.serverless.progress_update(job, {"step": step, "of": steps, "percent": 100 * step // steps})

    took = round(time.monotonic() - began, 3)
    result = {"prompt": prompt, "steps": steps, "seconds": took, "worker": worker, "gpus": gpus}
    if given.get("refresh"):
        result["refresh_worker"] = True  # taken out of the output: this worker ends, and a fresh one takes its place
    return result


def number(given, name, default, least, most):
    """The number that ``given`` has under ``name``, within its bounds; the message of the ValueError is for the client."""
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name} must be a number from {least} to {most}, not {value!r}")
    return value


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
