"""The jobs that the benchmarks run: one that does nothing, and one that says when it started and wants a fresh worker."""

import os
import time


def noop(job):
    return job["input"]


def fresh(_job):
    return {"start": time.monotonic_ns(), "pid": os.getpid(), "refresh_worker": True}
