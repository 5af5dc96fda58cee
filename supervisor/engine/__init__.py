"""The loop: turns, jobs, the queue, streams, scaling and what screens show. Runs in the supervisor."""
