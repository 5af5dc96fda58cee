"""Uploads a handler's files to an S3 bucket, by boto3. In the worker: ``serverless.upload_file`` imports it on its first call.

Only credentials of the job or the variables ``BUCKET_*`` are used, never those that boto3 finds elsewhere: a job without any must
not write with the machine's. No part of an ``s3Config`` may be in an error, so boto3's errors are masked.
"""

from __future__ import annotations

import functools
import mimetypes
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from supervisor.errors import UploadError

URL_LIFETIME_S = 7 * 24 * 3600
"""Lifetime of a URL: the maximum of signature version 4, as in runpod's own helper."""

_KEYS = ("endpointUrl", "accessId", "accessSecret", "bucketName")
_VARIABLES = ("BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY")
_REGION = re.compile(
    r"(?:^|\.)(?:s3[.-]([a-z0-9-]+)\.(?:amazonaws\.com|backblazeb2\.com|wasabisys\.com|scw\.cloud)"
    r"|([a-z0-9-]+)\.digitaloceanspaces\.com)"
)


class Bucket(msgspec.Struct, frozen=True):
    """A bucket and its credentials."""

    endpoint_url: str
    access_id: str
    access_secret: str
    name: str

    def put(self, path: Path, key: str) -> str:
        """Upload the file at ``path`` as ``key``, in parts if it is large; return a URL that reads it for ``URL_LIFETIME_S``.

        Raises:
            OSError: the file cannot be read.
            UploadError: boto3 is missing, or the server returned an error.
        """
        path.open("rb").close()  # raises Python's OSError rather than boto3's error
        kind, packed = mimetypes.guess_type(path.name)

        # For a compressed file, `kind` is that of its content.
        facts = {"ContentType": kind if kind and not packed else "application/octet-stream"}
        where = {"Bucket": self.name, "Key": key}
        try:
            client = _client(self, os.getpid())
            client.upload_file(str(path), self.name, key, ExtraArgs=facts)
            return str(client.generate_presigned_url("get_object", Params=where, ExpiresIn=URL_LIFETIME_S))
        except ImportError:
            text = "upload_file needs boto3: pip install 'supervise-gpu[s3]'"
        except Exception as error:  # noqa: BLE001 - boto3's have no common base, and any may contain its arguments
            text = self._without_secrets(f"{path.name} could not be uploaded: {type(error).__name__}: {error}")
        raise UploadError(text)  # outside of `except`, so that boto3's error is not its context

    def _without_secrets(self, text: str) -> str:
        for secret in (self.endpoint_url, urlsplit(self.endpoint_url).netloc, self.access_secret, self.access_id):
            if secret:
                text = text.replace(secret, "***")
        return re.sub(rf"(?<![\w.-]){re.escape(self.name)}(?![\w.-])", "***", text)  # often a common word


@functools.lru_cache(maxsize=4)
def _client(bucket: Bucket, _process: int) -> Any:
    """Make a client for ``bucket``. Cached, since one takes 0.1 s to make, but by process: forks must not share connections."""
    import boto3.session  # noqa: PLC0415 - optional, and slow to import
    from botocore.config import Config  # noqa: PLC0415

    options: dict[str, Any] = {"signature_version": "s3v4", "retries": {"max_attempts": 3, "mode": "standard"}}
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        if name in Config.OPTION_DEFAULTS:  # from 1.36 on it adds checksums that servers other than Amazon's reject
            options[name] = "when_required"
    return boto3.session.Session().client(  # not boto3's default session: threads cannot share that
        "s3",
        endpoint_url=bucket.endpoint_url,
        region_name=region_of(bucket.endpoint_url),
        aws_access_key_id=bucket.access_id,
        aws_secret_access_key=bucket.access_secret,
        config=Config(**options),
    )


def upload(job: Mapping[str, Any], path: str | os.PathLike[str], key: str | None = None) -> str:
    """Upload the file at ``path`` to the bucket of ``job``; see ``serverless.upload_file``."""
    file = Path(path)
    return bucket_of(job).put(file, f"{job['id']}/{file.name}" if key is None else key)


def bucket_of(job: Mapping[str, Any]) -> Bucket:
    """Return the bucket of the job's ``s3Config`` or, without one, of the variables ``BUCKET_*``.

    Raises:
        UploadError: some are missing; the message names them.
    """
    config = job.get("s3Config")
    if config is None:
        lacking = [name for name in _VARIABLES if not os.environ.get(name)]
        if lacking:
            raise UploadError(f"no bucket to upload to: the job has no s3Config, and {', '.join(lacking)} is not set")
        url, access_id, secret = (os.environ[name] for name in _VARIABLES)
        # As runpod does: a bucket for each month, below an endpoint whose URL may name the real one.
        return Bucket(url, access_id, secret, os.environ.get("BUCKET_NAME") or time.strftime("%m-%y"))
    given = config if isinstance(config, dict) else {}
    lacking = [key for key in _KEYS if not (given.get(key) and isinstance(given[key], str))]
    if lacking:
        raise UploadError(f"the job's s3Config lacks {', '.join(lacking)}")
    return Bucket(*(given[key] for key in _KEYS))


def region_of(endpoint_url: str) -> str | None:
    """Return the region in a provider's endpoint, which signatures must contain; None if boto3's default is right."""
    match = _REGION.search(urlsplit(endpoint_url).hostname or "")
    return match[1] or match[2] if match else None
