"""https://docs.runpod.io/serverless/endpoints/send-requests: S3-compatible storage, by the request's credentials."""

import runpod
from runpod.serverless.utils import rp_upload, upload_file_to_bucket, upload_in_memory_object


def handler(job):
    config = job["s3Config"]
    path = f"{job['id']}.txt"
    with open(path, "w") as file:
        file.write(f"for {job['id']}")
    return {
        "file": upload_file_to_bucket(path, path, config, config["bucketName"]),
        "memory": upload_in_memory_object("memory.txt", b"some text", config, config["bucketName"], prefix=job["id"]),
        "plain": rp_upload.bucket_upload(job["id"], [path], config),
    }


runpod.serverless.start({"handler": handler})
