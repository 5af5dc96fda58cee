"""Writes the bytes (hex) that the input has into its own pipe to the supervisor, then waits at a gate."""

import os
import runpy
from pathlib import Path

find = runpy.run_path(str(Path(__file__).with_name("finds_its_pipe.py")))["pipe_to_the_supervisor"]
os.write(find(), bytes.fromhex(job["input"]["bytes"]))  # noqa: F821 - put here by runs_a_child.py
Path(job["input"]["gate"]).read_text()  # noqa: F821 - as above
