"""Says what kind of process it is, then waits to be told to go."""

import json
import os
import resource
import signal
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

connection = Connection(start.conn_fd)  # noqa: F821 - put here by template_stand_in.py


def handles(signum):
    handler = signal.getsignal(signum)
    return handler.name if isinstance(handler, signal.Handlers) else getattr(handler, "__name__", repr(handler))


connection.send_bytes(
    json.dumps(
        {
            "pid": os.getpid(),
            "session": os.getsid(0),
            "parent": os.getppid(),
            "descriptors": {
                link.name: str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()
            },
            "connection": start.conn_fd,  # noqa: F821
            "environ": dict(os.environ),
            "environ_at_exec": Path("/proc/self/environ").read_text(),
            "tempdir": tempfile.gettempdir(),
            "tempdir_mode": Path(tempfile.gettempdir()).stat().st_mode & 0o777,
            "signals": {
                signum.name: handles(signum) for signum in signal.valid_signals() if isinstance(signum, signal.Signals)
            },
            "blocked": [int(signum) for signum in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            "modules": sorted(sys.modules),
            "path": sys.path,
            "generation": start.generation,  # noqa: F821
            "forked_at": start.forked_at,  # noqa: F821
            "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        }
    ).encode()
)
connection.recv_bytes()
