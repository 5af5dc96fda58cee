"""Stands in for ``runpod.serverless.utils.rp_cuda``."""

from __future__ import annotations

import subprocess

from runpod import _absent

_PATIENCE = 30


def is_available() -> bool:
    """Return whether ``nvidia-smi`` works, as the real one does. This says nothing about the GPUs that the worker may use."""
    try:
        shown = subprocess.run(
            ["nvidia-smi"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return b"NVIDIA-SMI" in shown.stdout


__getattr__ = _absent.getter(__name__)
