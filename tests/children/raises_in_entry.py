"""Raises where nothing catches it."""

raise RuntimeError("out of the entry")
