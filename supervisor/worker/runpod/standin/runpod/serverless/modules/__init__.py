"""Stands in for ``runpod.serverless.modules``."""

from runpod import _absent

__getattr__ = _absent.getter(__name__)
