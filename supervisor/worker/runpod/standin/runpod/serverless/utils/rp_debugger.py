"""Stands in for ``runpod.serverless.utils.rp_debugger``."""

from _supervise_runpod.timers import *  # noqa: F403 - its __all__

from runpod import _absent

__getattr__ = _absent.getter(__name__)
