"""Stands in for ``runpod.serverless.utils.rp_download``; files go to ``files.routed`` paths, and ``rp_cleanup.clean`` removes
them. A URL that leads to a non-public address, or to more bytes than allowed, raises a ValueError."""

from __future__ import annotations

import os
import random
import sys
import time
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from _supervise_runpod import current_job, files

from runpod import _absent
from runpod.serverless.utils import _fetch

_FILE_PATIENCE = 30
_LIST_PATIENCE = 5


def download_files_from_urls(job_id: str, urls: str | list[str | None]) -> list[str | None]:
    """Download ``urls``; return the files' absolute paths in that order, None for None and after three failed attempts."""
    folder = _folder("jobs", job_id, "downloaded_files")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda url: _download(url, folder), [urls] if isinstance(urls, str) else urls))


def download_input_objects(object_locations: list[str | None]) -> list[str | None]:
    """Download files, under the function's old name, which handlers still use."""
    return download_files_from_urls(current_job() or uuid.uuid4().hex, object_locations)


def file(file_url: str) -> dict[str, Any]:
    """Download one file; extract a ``.zip`` as well.

    Returns ``file_path``, ``type`` (the extension without its dot), ``original_name``, ``extracted_path`` (or None).

    Raises:
        requests.RequestException: the download failed.
    """
    folder = _folder("job_files")
    with _fetch.get(file_url, _FILE_PATIENCE) as response:
        original_name = _disposition_name(response.headers) or urlsplit(file_url).path.rpartition("/")[2]
        kind = _extension(original_name).replace(".", "")
        unpacked = folder / str(uuid.uuid4())
        path = folder / f"{unpacked.name}.{kind}"
        _fetch.save(response, path)
    answer = {"file_path": str(path), "type": kind, "original_name": original_name, "extracted_path": None}
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(unpacked)
        answer["extracted_path"] = str(unpacked)
    return answer


def _folder(*names: str) -> Path:
    folder: Path = files.routed(*names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download(url: str | None, folder: Path) -> str | None:
    import requests  # noqa: PLC0415 - requests may be missing

    if url is None:
        return None
    for pause in (1, 2, None):
        try:
            with _fetch.get(url, _LIST_PATIENCE) as response:
                extension = _extension(_disposition_name(response.headers)) or _extension(urlsplit(url).path)
                path = folder / f"{uuid.uuid4()}{extension}"
                _fetch.save(response, path)
            return str(path)
        except requests.RequestException as error:  # noqa: PERF203 - retried
            if pause is None or _is_final(error):
                sys.stdout.write(f"Failed to download {url}: {error}\n")
                return None
            time.sleep(random.uniform(0, pause))
    return None


def _extension(name: str) -> str:
    return os.path.splitext(name)[1]  # noqa: PTH122 - the server's name, not a path here


def _is_final(error: Any) -> bool:
    """Return whether a retry would get the same response."""
    status = getattr(error.response, "status_code", 0)
    return 400 <= status < 500 and status not in (408, 425, 429)


def _disposition_name(headers: Any) -> str:
    """Return the ``filename`` in ``Content-Disposition``, or an empty string."""
    for part in headers.get("Content-Disposition", "").split(";"):
        key, equals, value = part.partition("=")
        if equals and key.strip().lower() == "filename":
            return str(value.strip().strip('"'))
    return ""


__getattr__ = _absent.getter(__name__)
