"""Stands in for ``runpod.serverless.utils.rp_upload``: uploads to an S3 bucket by boto3, or saves to a folder without a bucket.

The bucket's credentials are a dict with ``endpointUrl``, ``accessId`` and ``accessSecret`` (such as a job's ``s3Config``), or the
variables ``BUCKET_ENDPOINT_URL``, ``BUCKET_ACCESS_KEY_ID`` and ``BUCKET_SECRET_ACCESS_KEY``. The bucket's default name is the
month, ``11-26``. Returned URLs are valid for seven days. Raises ImportError if a bucket is configured but boto3 is missing, and
OSError for a file that cannot be read.
"""

from __future__ import annotations

import io
import os
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from _supervise_runpod.files import save_locally

from runpod import _absent

_WEEK = 7 * 24 * 3600
_VARIABLES = {
    "endpointUrl": "BUCKET_ENDPOINT_URL",
    "accessId": "BUCKET_ACCESS_KEY_ID",
    "accessSecret": "BUCKET_SECRET_ACCESS_KEY",
}


def upload_image(
    job_id: str,
    image_location: str,
    result_index: int = 0,
    results_list: list[Any] | None = None,
    bucket_name: str | None = None,
) -> str:
    """Upload an image under a random name; return its URL, or path in ``simulated_uploaded``, and set it in ``results_list``."""
    extension = Path(image_location).suffix
    name = f"{str(uuid.uuid4())[:8]}{extension}"
    content = Path(image_location).read_bytes()
    client = _client()
    if client is None:
        where = str(save_locally(name, file_data=content, directory="simulated_uploaded"))
    else:
        place = _place(f"{job_id}/{name}", bucket_name)
        client.put_object(**place, Body=content, ContentType="image/" + extension.lstrip("."))
        where = _url(client, place)
    if results_list is not None:
        results_list[result_index] = where
    return where


def files(job_id: str, file_list: list[str]) -> list[str | None]:
    """Upload images concurrently with ``upload_image``; None for those that failed, with a message on stderr."""

    def upload(path: str) -> str | None:
        try:
            return upload_image(job_id, path)
        except Exception as error:  # noqa: BLE001 - as in the real one, where each thread fails on its own
            sys.stderr.write(f"{path} was not uploaded: {type(error).__name__}: {error}\n")
            return None

    with ThreadPoolExecutor() as pool:
        return list(pool.map(upload, file_list))


def bucket_upload(job_id: str, file_list: list[str], bucket_creds: dict[str, Any]) -> list[str]:
    """Upload files under their paths to the bucket ``bucket_creds["bucketName"]``; return their unsigned URLs."""
    client = _connect(bucket_creds)
    bucket = str(bucket_creds["bucketName"])
    for path in file_list:
        with open(path, "rb") as content:
            client.put_object(Bucket=bucket, Key=f"{job_id}/{path}", Body=content)
    return [f"{bucket_creds['endpointUrl']}/{bucket}/{job_id}/{path}" for path in file_list]


def upload_file_to_bucket(
    file_name: str,
    file_location: str,
    bucket_creds: dict[str, Any] | None = None,
    bucket_name: str | None = None,
    prefix: str | None = None,
    extra_args: dict[str, Any] | None = None,
) -> str:
    """Upload a file as ``file_name``, below ``prefix``; return its URL, or its path in ``local_upload``."""
    client = _client(bucket_creds)
    if client is None:
        return str(save_locally(file_name, source_path=file_location))
    place = _place(file_name, bucket_name, prefix)
    client.upload_file(**place, Filename=file_location, ExtraArgs=extra_args or None)
    return _url(client, place)


def upload_in_memory_object(
    file_name: str,
    file_data: bytes,
    bucket_creds: dict[str, Any] | None = None,
    bucket_name: str | None = None,
    prefix: str | None = None,
) -> str:
    """Upload bytes as ``file_name``, below ``prefix``; return their URL, or their path in ``local_upload``."""
    client = _client(bucket_creds)
    if client is None:
        return str(save_locally(file_name, file_data=file_data))
    place = _place(file_name, bucket_name, prefix)
    client.upload_fileobj(io.BytesIO(file_data), **place)
    return _url(client, place)


def _client(given: dict[str, Any] | None = None) -> Any:
    """Create a client of the bucket's server; None if none is configured."""
    wanted = {key: given[key] if given else os.environ.get(name) for key, name in _VARIABLES.items()}
    return _connect(wanted) if all(wanted.values()) else None


def _connect(wanted: dict[str, Any]) -> Any:
    try:
        import boto3  # noqa: PLC0415 - boto3 may be missing
        from botocore.config import Config  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("uploading to a bucket needs boto3: pip install 'supervise-gpu[s3]'") from error
    return boto3.session.Session().client(
        "s3",
        endpoint_url=wanted["endpointUrl"],
        aws_access_key_id=wanted["accessId"],
        aws_secret_access_key=wanted["accessSecret"],
        region_name=_region(wanted["endpointUrl"]),
        config=Config(signature_version="s3v4", retries={"max_attempts": 3, "mode": "standard"}),
    )


def _region(endpoint: str) -> str | None:
    """Extract the region of ``https://name.s3.eu-west-1.amazonaws.com`` or ``https://name.fra1.digitaloceanspaces.com``."""
    if ".s3." in endpoint:
        return endpoint.split(".s3.")[1].partition(".")[0]
    if urlsplit(endpoint).netloc.endswith(".digitaloceanspaces.com"):
        return endpoint.split(".")[1]
    return None


def _place(name: str, bucket: str | None, prefix: str | None = None) -> dict[str, str]:
    return {"Bucket": bucket or time.strftime("%m-%y"), "Key": f"{prefix}/{name}" if prefix else name}


def _url(client: Any, place: dict[str, str]) -> str:
    return str(client.generate_presigned_url("get_object", Params=place, ExpiresIn=_WEEK))


__getattr__ = _absent.getter(__name__)
