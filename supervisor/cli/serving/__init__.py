"""Commands that run workers: serve and batch, their event lines and their shutdown; in the supervisor's process."""
