"""Stands in for ``runpod.serverless.utils``; each worker imports it, so its functions are imported when they are asked for."""

from __future__ import annotations

from runpod import _absent

_MODULE_OF = {
    "download_files_from_urls": "rp_download",
    "upload_file_to_bucket": "rp_upload",
    "upload_in_memory_object": "rp_upload",
}

__all__ = ["download_files_from_urls", "upload_file_to_bucket", "upload_in_memory_object"]


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(_absent.lookup(__name__, _MODULE_OF[name]), name)
    return _absent.lookup(__name__, name)
