"""Memory that workers share lies in large pages, where the system has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.template.preload import huge_pages

PROGRAM = """
import json, mmap, re, sys
from pathlib import Path
from supervisor.template.preload import huge_pages

def anonymous():
    return mmap.mmap(-1, 48 * huge_pages.LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

def rollup():
    text = Path("/proc/self/smaps_rollup").read_text()
    return {name: int(re.search(rf"^{name}:\\s+(\\d+) kB", text, re.M)[1]) * 1024 for name in ("Rss", "AnonHugePages")}

dense, gap, sparse = anonymous(), mmap.mmap(-1, 4096), anonymous()
pattern = bytes(range(256)) * 16
for at in range(0, len(dense), len(pattern)):
    dense[at : at + len(pattern)] = pattern
for at in range(0, len(sparse), huge_pages.LARGE):
    sparse[at] = 1
if len(sys.argv) > 1:
    huge_pages._SETTING = Path(sys.argv[1])
before = rollup()
count = huge_pages.collapse()
after = rollup()
whole = all(dense[at : at + len(pattern)] == pattern for at in range(0, len(dense), len(pattern)))
print(json.dumps({"count": count, "whole": whole, "large": after["AnonHugePages"],
                  "collapsed": after["AnonHugePages"] - before["AnonHugePages"], "grown": after["Rss"] - before["Rss"]}))
"""


def run(*arguments: str) -> dict[str, int]:
    environ = {**os.environ, "PYTHONPATH": str(Path(huge_pages.__file__).parents[3])}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return json.loads(subprocess.run(command, env=environ, capture_output=True, check=True).stdout)


def test_dense_memory_is_collapsed_and_sparse_memory_does_not_grow() -> None:
    found = run()
    assert found["whole"]
    if not found["count"]:
        pytest.skip("this kernel has no MADV_COLLAPSE, or large pages are turned off")
    # A large page that the addresses do not fill at either end stays in small ones.
    assert 46 <= found["count"] <= 60
    assert found["large"] >= 46 * huge_pages.LARGE
    assert found["grown"] < 8 * huge_pages.LARGE


def test_where_large_pages_are_turned_off_nothing_is_done(tmp_path: Path) -> None:
    (tmp_path / "never").write_text("always madvise [never]\n")
    for setting in ("never", "not there"):
        found = run(str(tmp_path / setting))
        assert (found["count"], found["collapsed"], found["whole"]) == (0, 0, True)
