"""Stands in for ``runpod.serverless.utils``; imports its functions on demand, since every worker imports this package."""

from runpod import _absent

_MODULE_OF = {
    "download_files_from_urls": "rp_download",
    "upload_file_to_bucket": "rp_upload",
    "upload_in_memory_object": "rp_upload",
}
_module = _absent.getter(__name__)

__all__ = ["download_files_from_urls", "upload_file_to_bucket", "upload_in_memory_object"]


def __getattr__(name: str) -> object:
    return getattr(_module(_MODULE_OF[name]), name) if name in _MODULE_OF else _module(name)
