"""The command line: one file per verb; runs in the process that a person or a service manager starts."""
