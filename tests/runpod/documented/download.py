"""https://docs.runpod.io/serverless/development/download-files, and the same of one file with its name and kind."""

import os

import runpod
from runpod.serverless.utils import download_files_from_urls, rp_cleanup, rp_download


def read(path):
    with open(path, "rb") as file:
        return file.read().decode()


def handler(event):
    paths = download_files_from_urls(event["id"], event["input"]["urls"])
    one = rp_download.file(event["input"]["archive"])
    results = {
        "texts": [path and read(path) for path in paths],
        "extensions": [path and os.path.splitext(path)[1] for path in paths],
        "folder": os.path.basename(os.path.dirname(paths[0])),
        "absolute": all(os.path.isabs(path) for path in [paths[0], one["file_path"], one["extracted_path"]]),
        "type": one["type"],
        "original_name": one["original_name"],
        "extracted": sorted(os.listdir(one["extracted_path"])),
    }
    rp_cleanup.clean(["input_objects"])
    results["left"] = [path for path in [one["file_path"], one["extracted_path"]] if os.path.exists(path)]
    return results


runpod.serverless.start({"handler": handler})
