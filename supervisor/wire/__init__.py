"""Messages between processes, and frames in a worker's output."""
