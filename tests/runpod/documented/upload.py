"""runpod-python, docs/serverless/utils/rp_upload.md: by the credentials of the environment; without any, into a local folder."""

import runpod
from runpod.serverless.utils import rp_upload, upload_file_to_bucket, upload_in_memory_object


def handler(job):
    with open(f"{job['id']}.png", "wb") as image:
        image.write(b"an image")
    return {
        "image": rp_upload.upload_image(job["id"], f"{job['id']}.png", bucket_name="results"),
        "images": rp_upload.files(job["id"], [f"{job['id']}.png"] * 2) if job["input"].get("files") else None,
        "file": upload_file_to_bucket("file.png", f"{job['id']}.png", bucket_name="results", prefix="deep/down"),
        "memory": upload_in_memory_object("memory.txt", b"some text", bucket_name="results"),
    }


runpod.serverless.start({"handler": handler})
