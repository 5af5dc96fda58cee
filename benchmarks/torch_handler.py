"""A handler as people write it: torch at the top, a model made while it loads, and a fresh worker after each job."""

import os
import time

import torch

model = torch.nn.Linear(256, 256)


def handler(_job):
    start = time.monotonic_ns()
    with torch.inference_mode():
        norm = float(model(torch.rand(64, 256)).norm())
    return {"start": start, "pid": os.getpid(), "norm": norm, "refresh_worker": True}
