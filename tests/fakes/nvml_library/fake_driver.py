"""An object in place of ``CDLL("libnvidia-ml.so.1")``: NVML's C functions over the folder that ``fakes/nvml.py`` describes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

OK, INVALID, NOT_SUPPORTED, NOT_FOUND, TOO_SMALL, TIMEOUT = 0, 2, 3, 6, 7, 10
MIB = 1 << 20
UNKNOWN_MEMORY = (1 << 64) - 1
WHOLE_GPU = 0xFFFFFFFF
XID_EVENTS = 8
RECOVERY_ACTION = 230


class Library:
    """Looks functions up by name, as ``CDLL`` does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[
            str
        ] = []  # a handle is a position in here, from 1; the name is an index or a MIG instance's UUID
        self._died: dict[str, float] = {}
        self._event_sets: list[set[str]] = []  # the GPUs registered in each; its handle is a position in here, from 1
        self._delivered: list[set[str]] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        while self._hangs(name):
            time.sleep(0.02)
        implementation = getattr(type(self), "_" + name, None)
        if implementation is None or name in self._read("missing").split():
            raise AttributeError(name)

        def function(*args: object) -> int:
            while self._hangs(name):
                time.sleep(0.02)
            return implementation(self, *args)

        return function

    def _hangs(self, name: str) -> bool:
        return (self._folder / "hang").exists() and ((names := self._read("hang")) == "" or name in names.split())

    # --- the library

    def _nvmlInitWithFlags(self, flags: object) -> int:  # noqa: N802 - NVML's names
        return OK

    def _nvmlShutdown(self) -> int:  # noqa: N802
        return OK

    def _nvmlDeviceGetCount_v2(self, count: object) -> int:  # noqa: N802
        count._obj.value = len(list((self._folder / "gpus").iterdir()))
        return OK

    def _nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: object) -> int:  # noqa: N802
        if not (self._folder / "gpus" / str(index.value)).is_dir():
            return INVALID
        return self._failure(str(index.value)) or self._hand_out(str(index.value), handle)

    def _nvmlDeviceGetUUID(self, handle: object, buffer: object, size: object) -> int:  # noqa: N802
        name = self._name(handle)
        buffer.value = (name if name.startswith("MIG-") else self._read(f"gpus/{name}/uuid")).encode()
        return self._failure(name)

    def _nvmlDeviceGetName(self, handle: object, buffer: object, size: object) -> int:  # noqa: N802
        buffer.value = self._read(f"gpus/{self._gpu(handle)}/name").encode()
        return self._failure(self._name(handle))

    def _nvmlDeviceGetPciInfo_v3(self, handle: object, info: object) -> int:  # noqa: N802
        info._obj.busId = f"00000000:{int(self._gpu(handle)) + 0x4E:02X}:00.0".encode()
        return self._failure(self._name(handle))

    def _nvmlDeviceGetMemoryInfo(self, handle: object, memory: object) -> int:  # noqa: N802
        if any((self._folder / "uncounted" / alias).exists() for alias in self._aliases(self._name(handle))):
            return NOT_SUPPORTED
        used = sum(self._processes(handle, lagging=True).values()) + int(self._either("base", handle) or 0)
        info = memory._obj
        info.total = int(self._read(f"gpus/{self._gpu(handle)}/total")) * MIB
        info.used = used * MIB
        info.free = info.total - info.used
        return self._failure(self._name(handle))

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, handle: object, count: object, entries: object) -> int:  # noqa: N802
        lagging = (self._folder / "lists-the-dead").exists()
        listed = {} if (self._folder / "hidden").exists() else self._processes(handle, lagging)
        failure = self._failure(self._name(handle))
        room, count._obj.value = count._obj.value, len(listed)
        if failure or not listed:
            return failure
        if room < len(listed):
            return TOO_SMALL
        unknown = (self._folder / "unattributed").exists()
        shift = int(self._read("shift") or 0)
        for entry, (pid, used) in zip(entries, listed.items(), strict=False):
            entry.pid, entry.usedGpuMemory = pid + shift, UNKNOWN_MEMORY if unknown else used * MIB
        return OK

    _nvmlDeviceGetComputeRunningProcesses_v2 = _nvmlDeviceGetComputeRunningProcesses_v3  # noqa: N815

    def _nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: object, count: object, entries: object) -> int:  # noqa: N802
        count._obj.value = 0
        return self._failure(self._name(handle))

    def _nvmlDeviceGetUtilizationRates(self, handle: object, rates: object) -> int:  # noqa: N802
        rates._obj.gpu = 42
        return self._failure(self._name(handle))

    def _nvmlDeviceGetTemperature(self, handle: object, sensor: object, value: object) -> int:  # noqa: N802
        value._obj.value = 55
        return self._failure(self._name(handle))

    def _nvmlDeviceGetPowerUsage(self, handle: object, value: object) -> int:  # noqa: N802
        value._obj.value = 71500
        return self._failure(self._name(handle))

    def _nvmlDeviceGetMigMode(self, handle: object, current: object, pending: object) -> int:  # noqa: N802
        current._obj.value = pending._obj.value = int(self._instances(handle) > 0)
        return self._failure(self._name(handle))

    def _nvmlDeviceGetMaxMigDeviceCount(self, handle: object, count: object) -> int:  # noqa: N802
        count._obj.value = 7
        return OK

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, handle: object, number: ctypes.c_uint, instance: object) -> int:  # noqa: N802
        if number.value >= self._instances(handle):
            return NOT_FOUND
        return self._hand_out(f"MIG-{int(self._name(handle)):08x}-{number.value}", instance)

    def _nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: object, parent: object) -> int:  # noqa: N802
        return self._hand_out(self._gpu(handle), parent)

    def _nvmlDeviceGetGpuInstanceId(self, handle: object, number: object) -> int:  # noqa: N802
        number._obj.value = int(self._name(handle).split("-")[2])
        return OK

    def _nvmlDeviceGetFieldValues(self, handle: object, count: object, values: object) -> int:  # noqa: N802
        value, action = values._obj[0], self._either("recovery", handle)
        value.nvmlReturn = OK if value.fieldId == RECOVERY_ACTION and action else NOT_SUPPORTED
        value.value.uiVal = int(action or 0)
        return self._failure(self._name(handle))

    # --- events

    def _nvmlEventSetCreate(self, events: object) -> int:  # noqa: N802
        self._event_sets.append(set())
        self._delivered.append({path.name for path in (self._folder / "xids").iterdir()})
        return self._point(len(self._event_sets), events)

    def _nvmlEventSetFree(self, events: object) -> int:  # noqa: N802
        return OK

    def _nvmlDeviceGetSupportedEventTypes(self, handle: object, types: object) -> int:  # noqa: N802
        types._obj.value = 0 if (self._folder / "no-events").exists() else XID_EVENTS
        return self._failure(self._name(handle))

    def _nvmlDeviceRegisterEvents(self, handle: object, types: object, events: object) -> int:  # noqa: N802
        name = self._name(handle)
        if name.startswith("MIG-"):
            return NOT_SUPPORTED
        if failure := self._failure(name):
            return failure
        self._event_sets[_position(events)].add(name)
        with (self._folder / "watched" / name).open("a") as watched:
            watched.write("x")
        return OK

    def _nvmlEventSetWait_v2(self, events: object, data: object, timeout: ctypes.c_uint) -> int:  # noqa: N802
        registered, delivered = self._event_sets[_position(events)], self._delivered[_position(events)]
        until = time.monotonic() + timeout.value / 1000
        while time.monotonic() < until:
            for name in sorted({path.name for path in (self._folder / "xids").iterdir()} - delivered, key=int):
                delivered.add(name)
                gpu, code, *instance = self._read(f"xids/{name}").split()
                if gpu in registered:
                    event = data._obj
                    self._hand_out(gpu, ctypes.byref(event))  # the device is its first field
                    event.eventType, event.eventData = XID_EVENTS, int(code)
                    event.gpuInstanceId = int(instance[0]) if instance else WHOLE_GPU
                    return OK
            time.sleep(0.005)
        return TIMEOUT

    # --- the folder

    def _read(self, name: str) -> str:
        path = self._folder / name
        return path.read_text().strip() if path.is_file() else ""

    def _hand_out(self, name: str, handle: object) -> int:
        if name not in self._names:
            self._names.append(name)
        return self._point(self._names.index(name) + 1, handle)

    @staticmethod
    def _point(position: int, handle: object) -> int:
        value = ctypes.c_void_p(position)
        ctypes.memmove(handle, ctypes.byref(value), ctypes.sizeof(value))
        return OK

    def _name(self, handle: object) -> str:
        return self._names[_position(handle)]

    def _gpu(self, handle: object) -> str:
        name = self._name(handle)
        return str(int(name.split("-")[1], 16)) if name.startswith("MIG-") else name

    def _instances(self, handle: object) -> int:
        return int(self._read(f"gpus/{self._name(handle)}/mig") or 0)

    def _aliases(self, name: str) -> list[str]:
        return [name] if name.startswith("MIG-") else [name, self._read(f"gpus/{name}/uuid")]

    def _either(self, folder: str, handle: object) -> str:
        return next(filter(None, (self._read(f"{folder}/{alias}") for alias in self._aliases(self._name(handle)))), "")

    def _failure(self, name: str) -> int:
        return int(next(filter(None, (self._read(f"error/{alias}") for alias in self._aliases(name))), 0))

    def _processes(self, handle: object, lagging: bool) -> dict[int, int]:
        """MiB by pid, of the living ones, and of those dead for less than the lag if asked for."""
        lag = float(self._read("lag") or 0)
        found: dict[int, int] = {}
        for alias in self._aliases(self._name(handle)):
            for path in (self._folder / "alloc" / alias).glob("[0-9]*"):
                if _alive(path.name):
                    stays = True
                else:
                    died = self._died.setdefault(path.name, time.monotonic())
                    stays = lagging and time.monotonic() - died < lag
                if stays and (mib := self._read(str(path))):
                    found[int(path.name)] = found.get(int(path.name), 0) + int(mib)
        return found


def _position(handle: object) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value - 1


def _alive(pid: str) -> bool:
    """A zombie has closed its files, and with them what it had on a GPU."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in (b"Z", b"X")
