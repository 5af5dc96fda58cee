"""A client of a running supervisor, for the command line and the dashboard."""
