"""Stands in for ``runpod.serverless.utils.rp_cleanup``."""

from __future__ import annotations

from _supervise_runpod.files import clean

from runpod import _absent

__all__ = ["clean"]


def __getattr__(name: str) -> object:
    return _absent.refuse(__name__, name)
