"""A supervisor inside a Python program (docs/python.md); in the user's process.

``supervisor.py`` is what programs use, ``job.py`` their jobs, ``runtime.py`` the thread in which the engine lives.
"""

from supervisor.embed.job import JobFuture as JobFuture
from supervisor.embed.supervisor import Supervisor as Supervisor
