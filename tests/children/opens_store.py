"""Brings the store FILE one version on by SCRIPT; the kernel kills it as soon as it writes to a file beyond LIMIT bytes."""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

from supervisor.store import opening
from supervisor.store.store import Store

if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
    opening.STEPS = (*opening.STEPS, Path(sys.argv[2]))
    Store.open(Path(sys.argv[1])).close()
