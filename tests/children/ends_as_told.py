"""Ends with the exit code EXIT, or by the signal SIGNAL; with LITTER it leaves files in its TMPDIR."""

import os
import tempfile
from pathlib import Path

if os.environ.get("LITTER"):
    Path(tempfile.mkdtemp(), "litter").write_text("left behind")
if os.environ.get("SIGNAL"):
    os.kill(os.getpid(), int(os.environ["SIGNAL"]))
os._exit(int(os.environ.get("EXIT", "0")))
