"""The verbs that run workers in this process: serve and batch, their event lines and their end."""
