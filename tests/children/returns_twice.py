"""Forks and lets both processes return the result of the job."""

import os

result = "child" if os.fork() == 0 else "parent"
