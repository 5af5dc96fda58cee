"""Stands in for ``runpod.serverless``: its functions are those of ``supervisor.serverless``."""

from _supervise_runpod import progress_update, register_fitness_check, start

from runpod import _absent
from runpod.serverless import modules, utils

__all__ = ["modules", "progress_update", "register_fitness_check", "start", "utils"]

__getattr__ = _absent.getter(__name__)
