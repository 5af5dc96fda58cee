"""The supervisor's side of processes: slots and their states, pipes, the template, and whether GPU memory came back."""
