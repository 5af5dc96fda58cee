"""Stands in for ``runpod.serverless.modules.rp_progress``."""

from _supervise_runpod import progress_update

from runpod import _absent

__all__ = ["progress_update"]

__getattr__ = _absent.getter(__name__)
