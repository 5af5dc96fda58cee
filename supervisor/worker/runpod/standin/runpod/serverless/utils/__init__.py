"""Stands in for ``runpod.serverless.utils``."""

from __future__ import annotations

from runpod import _absent


def __getattr__(name: str) -> object:
    return _absent.lookup(__name__, name)
