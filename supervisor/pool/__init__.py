"""The supervisor's side of processes: slots and their states, pipes, the template, and the release of GPU memory."""
