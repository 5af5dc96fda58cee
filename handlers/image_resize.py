"""A handler that works on files: it makes an image smaller in the worker's own TMPDIR, and gives it back as base64 of a PNG.

Set up: pip install '.[examples]'
Serve:  supervise handlers/image_resize.py --workers 2
Ask:    curl localhost:8900/runsync -d '{"input": {"url": "https://www.python.org/static/img/python-logo.png", "width": 64}}'
"""

import base64
import binascii
import os
import tempfile
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import runpod
from PIL import Image, UnidentifiedImageError

MOST_BYTES = 32 << 20  # of an image file
MOST_SIDE = 4096  # pixels of the result
TIMEOUT = 20.0  # seconds for each step of a download


def handler(job):
    """Take ``image`` (base64), ``url`` or ``path``, and ``width`` or ``height`` (pixels; the other follows); give ``image``.

    Its files stay in the worker's folder, as much real code leaves them there; ``leftovers`` counts those that it found.
    ``refresh`` asks for a fresh worker: the old one's memory, its processes and its folder go with it.
    """
    given = job["input"]
    if not isinstance(given, dict) or sum(name in given for name in ("image", "url", "path")) != 1:
        return {"error": "input must have one of image (base64), url or path"}
    folder = Path(tempfile.gettempdir())  # TMPDIR, which is this worker's alone
    leftovers = sum(1 for entry in folder.iterdir() if entry.is_file())
    try:
        width, height = side(given, "width"), side(given, "height")
        if width is None and height is None:
            raise ValueError("input must have width or height, in pixels")
        source = fetch(given, folder)
        with Image.open(source) as opened:
            before = opened.size
            image = opened.convert("RGBA" if "A" in opened.getbands() or "transparency" in opened.info else "RGB")
            width = width or max(1, round(before[0] * height / before[1]))
            height = height or max(1, round(before[1] * width / before[0]))
            if max(width, height) > MOST_SIDE:
                raise ValueError(f"the result would be {width}x{height}, larger than {MOST_SIDE} pixels")
            result = source.with_suffix(".small.png")
            image.resize((width, height), Image.Resampling.LANCZOS).save(result, "PNG", optimize=True)
    except (ValueError, OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return {"error": str(error)}

    data = result.read_bytes()
    answer = {
        "image": base64.b64encode(data).decode("ascii"),
        "before": {"width": before[0], "height": before[1], "bytes": source.stat().st_size},
        "after": {"width": width, "height": height, "bytes": len(data)},
        "folder": str(folder),
        "leftovers": leftovers,
        "worker": os.environ.get("RUNPOD_POD_ID"),
    }
    if given.get("refresh"):
        answer["refresh_worker"] = True  # taken out of the output
    return answer


def side(given, name):
    """The number of pixels under ``name``, if it is there; the message of the ValueError is for the client."""
    value = given.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SIDE):
        raise ValueError(f"{name} must be a whole number from 1 to {MOST_SIDE}, not {value!r}")
    return value


def fetch(given, folder):
    """A file with the image. ``path`` reads any file that this program may read: whoever may send jobs may do that."""
    if "path" in given:
        with open(str(given["path"]), "rb") as file:
            return write(file.read(MOST_BYTES + 1), folder)
    if "url" in given:
        if urlsplit(str(given["url"])).scheme not in ("http", "https"):
            raise ValueError(f"not an http or https address: {given['url']!r}")
        with urllib.request.urlopen(given["url"], timeout=TIMEOUT) as answer:
            return write(answer.read(MOST_BYTES + 1), folder)
    try:
        return write(base64.b64decode(str(given["image"]), validate=True), folder)
    except binascii.Error as error:
        raise ValueError(f"image is not base64: {error}") from error


def write(data, folder):
    """A new file with ``data``."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"the image is larger than {MOST_BYTES} bytes")
    descriptor, name = tempfile.mkstemp(suffix=".image", dir=folder)
    with open(descriptor, "wb") as file:
        file.write(data)
    return Path(name)


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
