"""The proof that GPU memory is free, and faults of GPUs."""
