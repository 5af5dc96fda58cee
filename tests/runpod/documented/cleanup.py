"""https://docs.runpod.io/serverless/development/cleanup: the folder is a shared one here, so it may outlive the job."""

import os

import requests
import runpod
from runpod.serverless.utils.rp_cleanup import clean


def download_image(url, save_path):
    response = requests.get(url, timeout=10)
    if response.status_code != 200:
        return False
    with open(save_path, "wb") as file:
        file.write(response.content)
    return True


def handler(event):
    try:
        image_url = event["input"]["image_url"]
        os.makedirs("temp_images", exist_ok=True)
        if not download_image(image_url, "temp_images/downloaded_image.jpg"):
            raise Exception("Failed to download image")
        clean(folder_list=["temp_images"])
        return {"output": f"Processed image {os.path.basename(image_url)}"}
    except Exception as e:
        clean(folder_list=["temp_images"])
        return {"error": str(e)}


runpod.serverless.start({"handler": handler})
