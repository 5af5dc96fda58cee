"""Puts a handler's files into an S3 bucket, by boto3. In the worker: ``serverless.upload_file`` imports it when it is called.

Only what the job or the environment says is used, never what boto3 would find elsewhere: a job without credentials must not write
with the machine's. Nothing of an ``s3Config`` may be in an error, so boto3's are told anew.
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
"""How long a URL works: as long as signature version 4 allows, and as runpod's own helper asks for."""

_KEYS = ("endpointUrl", "accessId", "accessSecret", "bucketName")
_VARIABLES = ("BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY")
_REGION = re.compile(
    r"(?:^|\.)(?:s3[.-]([a-z0-9-]+)\.(?:amazonaws\.com|backblazeb2\.com|wasabisys\.com|scw\.cloud)"
    r"|([a-z0-9-]+)\.digitaloceanspaces\.com)"
)


class Bucket(msgspec.Struct, frozen=True):
    """Where to, and by whose leave."""

    endpoint_url: str
    access_id: str
    access_secret: str
    name: str

    def put(self, path: Path, key: str) -> str:
        """Upload the file at ``path`` as ``key``, in parts if it is large; a URL that reads it for ``URL_LIFETIME_S``.

        Raises:
            OSError: the file cannot be read.
            UploadError: boto3 is missing, or the server refused.
        """
        path.open("rb").close()  # what is wrong with it is told by Python, not by boto3
        kind, packed = mimetypes.guess_type(path.name)

        # S3 has no better word for bytes; a packed file's kind is that of what is in it.
        facts = {"ContentType": kind if kind and not packed else "application/octet-stream"}
        where = {"Bucket": self.name, "Key": key}
        try:
            client = _client(self, os.getpid())
            client.upload_file(str(path), self.name, key, ExtraArgs=facts)
            return str(client.generate_presigned_url("get_object", Params=where, ExpiresIn=URL_LIFETIME_S))
        except ImportError:
            text = "upload_file needs boto3: pip install 'supervise-gpu[s3]'"
        except Exception as error:  # noqa: BLE001 - boto3's have no common root, and any may repeat what it was given
            text = self._without_secrets(f"{path.name} could not be uploaded: {type(error).__name__}: {error}")
        raise UploadError(text)  # here, where the other one is not its context

    def _without_secrets(self, text: str) -> str:
        for secret in (self.endpoint_url, urlsplit(self.endpoint_url).netloc, self.access_secret, self.access_id):
            if secret:
                text = text.replace(secret, "***")
        return re.sub(rf"(?<![\w.-]){re.escape(self.name)}(?![\w.-])", "***", text)  # often a common word


@functools.lru_cache(maxsize=4)
def _client(bucket: Bucket, _process: int) -> Any:
    """A client for ``bucket``: kept, since one takes 0.1 s to make, but not into a fork, which would share its connections."""
    import boto3.session  # noqa: PLC0415 - optional, and slow to import
    from botocore.config import Config  # noqa: PLC0415

    options: dict[str, Any] = {"signature_version": "s3v4", "retries": {"max_attempts": 3, "mode": "standard"}}
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        if name in Config.OPTION_DEFAULTS:  # from 1.36 on it adds checksums that other servers than Amazon's refuse
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
    """Put the file at ``path`` into the bucket of ``job``; see ``serverless.upload_file``."""
    file = Path(path)
    return bucket_of(job).put(file, f"{job['id']}/{file.name}" if key is None else key)


def bucket_of(job: Mapping[str, Any]) -> Bucket:
    """The bucket of the job's ``s3Config``; without one, that of the variables ``BUCKET_*``.

    Raises:
        UploadError: something is missing; it says what.
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
    """The region that a provider's endpoint names, which the signatures must name too; None where boto3's own choice will do."""
    match = _REGION.search(urlsplit(endpoint_url).hostname or "")
    return match[1] or match[2] if match else None
