"""A handler that runs the file of this folder which the input names: what that does to the worker, the job did."""

import runpy
from pathlib import Path


def handler(job):
    given = job["input"]
    if not isinstance(given, dict) or "child" not in given:
        return given
    found = runpy.run_path(str(Path(__file__).parent / f"{given['child']}.py"), init_globals={"job": job})
    return found.get("result")
