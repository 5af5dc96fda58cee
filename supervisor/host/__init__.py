"""Linux functions: processes, exit statuses, temporary folders, ports, limits."""
