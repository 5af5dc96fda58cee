"""Verification that GPU memory is free, and detection of lost GPUs."""
