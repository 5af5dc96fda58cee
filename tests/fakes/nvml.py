"""Fake NVIDIA GPUs for tests, *below* the real ``nvidia-ml-py``: its own Python code runs, only the driver's library is ours.

A folder of files is the machine; every process reads it afresh, so a test, a handler and the reader process share it::

    fake = FakeNvml(tmp_path / "nvml", gpus=4)
    subprocess.Popen([..., "bin/supervise", "handlers.my_handler"], env={**os.environ, **fake.env()})

``env()`` is ``FAKE_NVML`` (the folder) and a ``PYTHONPATH`` whose ``pynvml`` loads the real one and puts the fake library under
it. A process without that ``PYTHONPATH`` never sees any of this. A handler takes memory by writing its own file, and gives it
back by dying::

    gpu = os.environ["CUDA_VISIBLE_DEVICES"]  # an index or a UUID
    pathlib.Path(os.environ["FAKE_NVML"], "alloc", gpu, str(os.getpid())).write_text("2000")  # MiB

===================== ==================================================================================================
file                  meaning
===================== ==================================================================================================
gpus/N/uuid, name,    GPU N. ``mig`` (a number) puts it in MIG mode with that many instances, ``MIG-…-N-M``, whose memory is
total (MiB), mig      allocated under their UUID
alloc/GPU/PID         MiB in use by that process while it lives; GPU is an index or a UUID
base/GPU              MiB in use by nobody who is listed, whatever lives
lag                   seconds for which the memory of a dead process stays in use, not listed; ``inf`` for ever
lists-the-dead        exists: they are listed for as long as their memory stays
shift                 a number that is added to each pid in the lists, as if they were the pids of another namespace
uncounted/GPU         exists: that GPU has no counter of its memory (NVML answers "not supported")
error/GPU             NVML's error code for whatever is asked of that GPU (15: lost)
xids/N                the Nth Xid that the driver reports: GPU, code and, of a MIG instance, its number
watched/N             grows by a character with each event set that GPU N is registered in
recovery/GPU          what the driver asks for before that GPU can be used again (1: a reset); without it, it does not tell
missing               names of library functions that this driver lacks, one per line
hidden                exists: process lists are empty, as in a container
unattributed          exists: processes are listed without their memory
no-events             exists: no Xid is reported
hang                  exists: every call waits until it is gone; or, with names of functions in it, every call of those
===================== ==================================================================================================
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

_LIBRARY = Path(__file__).parent / "nvml_library"
NO_PID_HERE = 1 << 22
"""A shift to numbers that no process has: Linux gives none from there on."""

LOST = 15
UNKNOWN = 999


class FakeNvml:
    """Writes the folder. GPUs are named by index, or by UUID."""

    def __init__(self, folder: Path, gpus: int = 1, total_mib: int = 24576) -> None:
        self.folder = folder
        for name in ("gpus", "alloc", "base", "error", "uncounted", "xids", "watched", "recovery"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(gpus):
            self.add(index, total_mib)

    def add(self, index: int, total_mib: int = 24576, mig: int = 0) -> str:
        """Add a GPU, or give it ``mig`` instances; returns its UUID."""
        gpu = self.folder / "gpus" / str(index)
        gpu.mkdir(exist_ok=True)
        # Not the same in every test, so that tests side by side do not meet at the locks.
        uuid = f"GPU-{index:08x}-0000-0000-0000-{zlib.crc32(bytes(self.folder)):012x}"
        (gpu / "uuid").write_text(uuid)
        (gpu / "name").write_text("NVIDIA Fake L4")
        (gpu / "total").write_text(str(total_mib))
        (gpu / "mig").write_text(str(mig))
        for name in (str(index), uuid, *(f"MIG-{index:08x}-{number}" for number in range(mig))):
            (self.folder / "alloc" / name).mkdir(exist_ok=True)
        return uuid

    def uuid(self, index: int) -> str:
        return (self.folder / "gpus" / str(index) / "uuid").read_text()

    def env(self) -> dict[str, str]:
        """What to add to the environment of a process so that its reader sees these GPUs."""
        path = os.environ.get("PYTHONPATH")
        return {
            "FAKE_NVML": str(self.folder),
            "PYTHONPATH": os.pathsep.join([str(_LIBRARY), *([path] if path else [])]),
        }

    def allocate(self, gpu: int | str, pid: int, mib: int) -> None:
        """Let that process use ``mib``."""
        self._write(f"alloc/{gpu}/{pid}", mib)

    def forget(self, gpu: int | str, pid: int) -> None:
        """Give back what that process used, also when it is dead and its memory would stay."""
        (self.folder / f"alloc/{gpu}/{pid}").unlink()

    def base(self, gpu: int | str, mib: int) -> None:
        """Let ``mib`` be in use by nobody."""
        self._write(f"base/{gpu}", mib)

    def error(self, gpu: int | str, code: int | None) -> None:
        """Let every question about that GPU fail with NVML's ``code``; ``None`` heals it."""
        if code is None:
            (self.folder / f"error/{gpu}").unlink(missing_ok=True)
        else:
            self._write(f"error/{gpu}", code)

    def xid(self, gpu: int, code: int, instance: int | None = None) -> None:
        """Let the driver report an Xid to all who watch that GPU now; of one MIG instance only, if it is named."""
        number = len(list((self.folder / "xids").iterdir()))
        self._write(f"xids/{number}", f"{gpu} {code} {'' if instance is None else instance}")

    def watched(self, gpu: int) -> int:
        """How often that GPU was registered in an event set; an Xid from before reaches nobody."""
        path = self.folder / f"watched/{gpu}"
        return path.stat().st_size if path.exists() else 0

    def recovery(self, gpu: int, action: int) -> None:
        """Let the driver ask for ``NVML_GPU_RECOVERY_ACTION_…`` (0: nothing)."""
        self._write(f"recovery/{gpu}", action)

    def lag(self, seconds: float) -> None:
        """Let memory outlive its process by ``seconds`` (``inf``: for ever)."""
        self._write("lag", seconds)

    def shift(self, by: int) -> None:
        """Name processes by other numbers than their pids here: as in a container, where NVML tells the host's."""
        self._write("shift", by)

    def uncounted(self, gpu: int | str) -> None:
        """Let that GPU have no counter of its memory."""
        self._write(f"uncounted/{gpu}", "")

    def missing(self, *functions: str) -> None:
        """Let the driver lack these functions."""
        self._write("missing", "\n".join(functions))

    def hang(self, *functions: str) -> None:
        """Let calls of these functions wait until ``switch("hang", on=False)``."""
        self._write("hang", "\n".join(functions))

    def switch(self, name: str, on: bool = True) -> None:
        """Turn ``hidden``, ``unattributed``, ``lists-the-dead``, ``no-events`` or ``hang`` on or off."""
        if on:
            self._write(name, "")
        else:
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, name: str, content: object) -> None:
        path = self.folder / name
        # Not under its final name while half-written: the reader may look at any moment.
        half = self.folder / f".half-{os.getpid()}"
        half.write_text(str(content))
        half.rename(path)
