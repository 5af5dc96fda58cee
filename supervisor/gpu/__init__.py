"""GPUs: what NVML shows, which one a worker sees, and who holds it."""
