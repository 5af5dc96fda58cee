"""GPUs: reading by NVML, pinning of workers, and locks."""
