"""The command line; runs in the process that a person or a service manager starts."""
