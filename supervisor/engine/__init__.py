"""The engine: turns, jobs, the queue, streams, scaling and the data for screens. Runs in the supervisor."""
