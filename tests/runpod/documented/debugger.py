"""runpod-python, docs/serverless/utils/rp_debugger.md: timers around what every job does again."""

import runpod
from runpod.serverless.utils import rp_debugger


@rp_debugger.FunctionTimer
def run_job(job):
    with rp_debugger.LineTimer("validation_step"):
        number = job["input"]["n"]
    with rp_debugger.LineTimer("prediction_step"):
        return {"twice": 2 * number}


runpod.serverless.start({"handler": run_job})
