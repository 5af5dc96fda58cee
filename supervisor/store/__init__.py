"""The durable job queue: one SQLite file, opened by the supervisor process alone."""
