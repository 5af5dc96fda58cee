"""Linux as the program uses it: processes, exit statuses, temporary folders, ports, limits."""
