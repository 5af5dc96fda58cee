"""The command line; runs in the process that a user or a service manager starts."""
