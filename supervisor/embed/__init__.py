"""A supervisor inside a Python program (docs/python.md); in the user's process.

``supervisor.py`` has the public class, ``job.py`` the futures of jobs, ``runtime.py`` the engine's thread.
"""

from supervisor.embed.job import JobFuture as JobFuture
from supervisor.embed.supervisor import Supervisor as Supervisor
