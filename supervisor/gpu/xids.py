"""Watches the driver's error reports (Xids), in a thread of the reader process, so that readings are not blocked.

NVML delivers them as events (NVML API, event handling methods). If it does not, that is reported, and readings continue.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Union

import msgspec

from supervisor.gpu.records import Gpu, Unwatched, Xid

WAIT_MS = 1000
"""Milliseconds that one call waits; new requests are checked between two calls."""

PAUSE_S = 5.0
"""Seconds until the GPUs are registered again after a failed wait, for example because a GPU is lost."""

REPEAT_S = 1.0
"""Seconds in which an Xid of a GPU is reported once: a fault may produce one for each channel of a process."""

_WHOLE_GPU = 0xFFFFFFFF


class Watched(msgspec.Struct, frozen=True):
    """A GPU or MIG instance and its NVML handle."""

    gpu: Gpu
    handle: Any


class WatchRequest(msgspec.Struct, frozen=True):
    """The devices to watch, with the initialised ``pynvml`` and the exceptions of its functions."""

    nvml: Any
    failures: tuple[type[Exception], ...]
    devices: tuple[Watched, ...]


class XidWatch:
    """Reports Xids from its own thread, which the first ``watch`` starts."""

    def __init__(self, report: Callable[[Union[Xid, Unwatched]], None]) -> None:
        """Call ``report`` for each Xid. ``suspects`` are the UUIDs of the GPUs with a hardware Xid."""
        self.suspects: set[str] = set()
        self._report = report
        self._requests: queue.SimpleQueue[WatchRequest] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._reported_at: dict[tuple[str, int], float] = {}

    def watch(self, request: WatchRequest) -> None:
        """Watch these devices from now on, and no others. Does not block."""
        self._requests.put(request)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="xids", daemon=True)
            self._thread.start()

    # --- in the thread

    def _run(self) -> None:
        request = self._requests.get()
        while True:
            request = self._watch_until_next(request)

    def _watch_until_next(self, request: WatchRequest) -> WatchRequest:
        """Report events until the next request and return it, or the same one if the devices must be registered again."""
        nvml = request.nvml
        try:
            events = nvml.nvmlEventSetCreate()
        except request.failures as error:
            self._report(Unwatched(str(error)))
            return self._requests.get()
        try:
            devices = self._register(request, events)
            while devices and self._requests.empty():
                try:
                    event = nvml.nvmlEventSetWait_v2(events, WAIT_MS)
                except request.failures as error:
                    if getattr(error, "value", None) == nvml.NVML_ERROR_TIMEOUT:
                        continue
                    with contextlib.suppress(queue.Empty):
                        return self._requests.get(timeout=PAUSE_S)
                    return request
                if event.eventType == nvml.nvmlEventTypeXidCriticalError:
                    for gpu, instance in devices.get(_address(event.device), ()):
                        if _WHOLE_GPU in (instance, event.gpuInstanceId) or instance == event.gpuInstanceId:
                            self._report_xid(gpu.uuid, int(event.eventData))
            return self._requests.get()
        finally:
            with contextlib.suppress(*request.failures):
                nvml.nvmlEventSetFree(events)

    def _register(self, request: WatchRequest, events: Any) -> dict[int, list[tuple[Gpu, int]]]:
        """Register all devices with ``events``; return them, with MIG instance numbers, by the handle address of their GPU."""
        nvml = request.nvml
        registered: dict[int, list[tuple[Gpu, int]]] = {}
        for device in request.devices:
            try:
                handle, instance = _whole(nvml, device)
                if _address(handle) not in registered:
                    # Unsupported types make the call fail, and an empty set registers nothing.
                    wanted = nvml.nvmlEventTypeXidCriticalError & nvml.nvmlDeviceGetSupportedEventTypes(handle)
                    if not wanted:
                        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
                    nvml.nvmlDeviceRegisterEvents(handle, wanted, events)
                registered.setdefault(_address(handle), []).append((device.gpu, instance))
            except request.failures as error:  # noqa: PERF203 - devices fail independently
                self._report(Unwatched(f"GPU {device.gpu.index}: {error}"))
        return registered

    def _report_xid(self, uuid: str, code: int) -> None:
        now = time.monotonic()
        if now - self._reported_at.get((uuid, code), -REPEAT_S) >= REPEAT_S:
            self._reported_at[uuid, code] = now
            xid = Xid(uuid, code, now)
            if not xid.by_application:
                self.suspects.add(uuid)
            self._report(xid)


def _whole(nvml: Any, device: Watched) -> tuple[Any, int]:
    """Return the whole GPU's handle, since MIG instances cannot be registered, and the instance number."""
    if device.gpu.mig is None:
        return device.handle, _WHOLE_GPU
    parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device.handle)
    return parent, nvml.nvmlDeviceGetGpuInstanceId(device.handle)


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
