"""Not misbehaving: waits at a gate."""

from pathlib import Path

Path(job["input"]["gate"]).read_text()  # noqa: F821 - put here by runs_a_child.py
