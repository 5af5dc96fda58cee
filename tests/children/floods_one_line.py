"""Writes 10 MB without a line end, and bytes that are no text."""

import os

for _ in range(10):
    os.write(1, b"\xff\0\x1b" * 350_000)
result = "all written"
