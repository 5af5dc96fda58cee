"""The template process: forks workers on demand, reaps them and their descendants, and terminates all if the supervisor dies."""
