"""https://docs.runpod.io/serverless/development/fitness-checks: of both kinds, in order, before the first job."""

import asyncio
import os

import runpod

passed = []


@runpod.serverless.register_fitness_check
def check_environment():
    missing = [name for name in os.environ.get("REQUIRED", "").split() if not os.environ.get(name)]
    if missing:
        raise RuntimeError(f"Missing environment variables: {', '.join(missing)}")
    passed.append("environment")


@runpod.serverless.register_fitness_check
async def check_connectivity():
    await asyncio.sleep(0.001)
    passed.append("connectivity")


def handler(job):
    return {"passed": passed}


runpod.serverless.start({"handler": handler})
