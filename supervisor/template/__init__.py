"""The template process: forks workers on demand, reaps them and all they started, and guards against the supervisor's death."""
