"""Stands in for ``runpod.serverless.utils.rp_cleanup``."""

from _supervise_runpod.files import clean

from runpod import _absent

__all__ = ["clean"]

__getattr__ = _absent.getter(__name__)
