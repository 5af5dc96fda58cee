"""Real GPUs through NVML (``nvidia-ml-py``, ``import pynvml``); runs in the reader process only, since a call may hang for ever.

Few functions are needed, and each may be missing: drivers are old, GPUs lack sensors, containers hide processes. What cannot be
read is ``None``. A GPU is ``lost`` only on NVML's plain word (lost, or to be reset), never on unknown errors or time-outs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from supervisor.gpu.attribution import Attribution
from supervisor.gpu.records import MIB, Gpu, GpuProcess, GpuSample, Listing, WorkerRef
from supervisor.gpu.xids import Watched, WatchRequest, XidWatch

_PLAIN = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": "no NVIDIA driver is installed (libnvidia-ml.so.1 was not found)",
    "NVML_ERROR_DRIVER_NOT_LOADED": "the NVIDIA driver is not loaded",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "the NVIDIA driver and its library are of different versions; a reboot mends that",
    "NVML_ERROR_NO_PERMISSION": "this user may not use the NVIDIA driver",
}
"""What initialising NVML can fail with, in words that say what to do."""

_RECOVERY = {
    1: "a reset of the GPU",
    2: "a reboot",
    3: "an end of all peer-to-peer traffic",
    4: "a reset of the GPU, once it is drained",
    6: "a reset of the PCIe bus",
    7: "a reboot",
}
"""``nvmlDeviceGpuRecoveryAction_t``. 0: "the GPU can be immediately used again" (NVIDIA, GPU Memory Error Management)."""


class SourceError(Exception):
    """Nothing can be read at the moment; the message says why."""


class NvmlSource:
    """The GPUs of the driver. Initialises once: repeated initialisation has hung on some drivers (go-nvml#152)."""

    def __init__(self, xids: XidWatch, attribution: Attribution) -> None:
        """Touch nothing yet; let ``xids`` watch the GPUs that are found, and ``attribution`` say whose listed processes are."""
        self._nvml: Any = None
        self._failures: tuple[type[Exception], ...] = ()
        self._devices: dict[str, Watched] = {}
        self._lost: set[str] = set()
        self._stale = True
        self._xids = xids
        self._attribution = attribution
        self._watched: frozenset[str] = frozenset()

    def listing(self) -> Listing:
        """The GPUs that workers can be pinned to, as NVML shows them now; MIG instances in place of a GPU in MIG mode."""
        try:
            self._initialise()
            devices, missing = self._enumerate()
        except SourceError as error:
            return Listing(reason=str(error))
        self._devices = devices
        self._stale = False
        self._watch_xids()
        if not devices and not missing:
            return Listing(reason="the NVIDIA driver shows no GPU")
        reason = "; ".join(missing) or None
        return Listing(gpus=tuple(device.gpu for device in devices.values()), reason=reason, complete=not missing)

    def sample(self, workers: Mapping[str, WorkerRef]) -> list[GpuSample]:
        """One reading of each GPU listed before, and of those that have come since; processes of a tree in ``workers`` (by slot)
        carry that slot.

        Raises:
            SourceError: nothing can be read.
        """
        self._initialise()
        if self._stale:
            self._renew_handles()
        lost = set(self._lost)
        samples = [self._read(device) for device in self._devices.values()]
        if lost - self._lost:
            self._watched = frozenset()  # what was registered for a GPU that was lost may be lost with it
        self._watch_xids()
        return self._attribution.attribute(samples, workers)

    # --- finding GPUs

    def _initialise(self) -> None:
        if self._nvml is not None:
            return
        try:
            import pynvml  # noqa: PLC0415 - without GPUs to read, and in the simulation, nobody needs it
        except ImportError as error:
            raise SourceError(f"the package nvidia-ml-py is not installed ({error})") from error
        # The library's wrappers raise more than their own errors when a function or a field is missing.
        failures = [pynvml.NVMLError, AttributeError, TypeError, ValueError]
        failures += filter(None, [getattr(pynvml, "NVMLLibraryMismatchError", None)])
        self._failures = tuple(failures)
        try:
            pynvml.nvmlInit()
        except self._failures as error:
            code = getattr(error, "value", None)
            plain = next((text for name, text in _PLAIN.items() if getattr(pynvml, name, -1) == code), None)
            raise SourceError(plain or f"NVML cannot be initialised: {error}") from error
        self._nvml = pynvml

    def _enumerate(self) -> tuple[dict[str, Watched], list[str]]:
        """The devices by UUID, and what NVML says of GPUs that it counts but cannot describe."""
        nvml = self._nvml
        try:
            count = nvml.nvmlDeviceGetCount()
        except self._failures as error:
            self._reset_if_uninitialised(error)
            raise SourceError(f"NVML cannot count the GPUs: {error}") from error
        devices: dict[str, Watched] = {}
        missing = []
        for index in range(count):
            try:
                found = list(self._describe(index))
            except self._failures as error:
                missing.append(f"GPU {index} cannot be read: {error}")
                continue
            devices |= {device.gpu.uuid: device for device in found}
        return devices, missing

    def _describe(self, index: int) -> Iterator[Watched]:
        """GPU ``index``, or its MIG instances when it is in MIG mode."""
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        whole = self._gpu(handle, index)
        mode = self._optional("nvmlDeviceGetMigMode", handle)
        if not mode or mode[0] != 1:
            yield Watched(whole, handle)
            return
        for number in range(self._optional("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            instance = self._optional("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if instance is not None:
                gpu = self._gpu(instance, index)
                yield Watched(msgspec.structs.replace(gpu, mig=number, parent=whole.uuid, pci=whole.pci), instance)

    def _gpu(self, handle: Any, index: int) -> Gpu:
        address = self._optional("nvmlDeviceGetPciInfo", handle)
        domain, _, rest = (address.busId if address else "").lower().partition(":")
        return Gpu(
            index=index,
            uuid=self._nvml.nvmlDeviceGetUUID(handle),
            name=self._optional("nvmlDeviceGetName", handle) or "NVIDIA GPU",
            memory_total_mib=_total(self._optional("nvmlDeviceGetMemoryInfo", handle)),
            # NVML writes the domain with eight digits, Linux with four at least.
            pci=f"{domain[-4:] if domain.startswith('0000') else domain}:{rest}" if rest else None,
        )

    def _renew_handles(self) -> None:
        """Take fresh handles, which a GPU that came back needs; one that NVML cannot describe now keeps its old one."""
        devices, missing = self._enumerate()
        self._devices |= devices
        self._stale = bool(missing)

    def _watch_xids(self) -> None:
        uuids = frozenset(self._devices)
        if self._nvml is not None and uuids != self._watched:
            self._watched = uuids
            self._xids.watch(WatchRequest(self._nvml, self._failures, tuple(self._devices.values())))

    # --- reading one

    def _read(self, device: Watched) -> GpuSample:
        gpu, handle = device.gpu, device.handle
        try:
            memory = self._memory(handle)
        except self._failures as error:
            return self._unreadable(gpu, error)
        if gpu.uuid in self._xids.suspects and (needed := self._recovery(handle)):
            self._lost.add(gpu.uuid)
            return GpuSample(uuid=gpu.uuid, memory_total_mib=gpu.memory_total_mib, error=needed, lost=True)
        self._lost.discard(gpu.uuid)
        utilization = self._optional("nvmlDeviceGetUtilizationRates", handle)
        power = self._optional("nvmlDeviceGetPowerUsage", handle)
        total = _total(memory)
        return GpuSample(
            uuid=gpu.uuid,
            memory_used_mib=None if total is None else int(memory.used) // MIB,
            memory_total_mib=total,
            utilization=int(utilization.gpu) if utilization else None,
            temperature_c=self._optional("nvmlDeviceGetTemperature", handle, 0),
            power_w=round(power / 1000, 1) if power is not None else None,
            processes=self._processes(handle),
        )

    def _recovery(self, handle: Any) -> str | None:
        """What the driver says must be done before the GPU can be used again; ``None`` for nothing, or from older drivers."""
        field = getattr(self._nvml, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", None)
        values = self._optional("nvmlDeviceGetFieldValues", handle, [field]) if field is not None else None
        if values is None or values[0].nvmlReturn != 0 or not (action := int(values[0].value.uiVal)):
            return None
        return f"the driver asks for {_RECOVERY.get(action, f'recovery action {action}')}"

    def _memory(self, handle: Any) -> Any:
        """Total, free and used bytes; ``None`` where nothing counts them: the GPU shares the host's memory (GB10, nvitop#208), or
        the driver has no such function."""
        # The second one for good only: it leaves out what the driver has reserved, so figures of both cannot be compared.
        for version in ({}, {"version": self._nvml.nvmlMemory_v2}):
            try:
                return self._nvml.nvmlDeviceGetMemoryInfo(handle, **version)
            except self._failures as error:  # noqa: PERF203 - the other one is asked next
                if self._is(error, "NVML_ERROR_NOT_SUPPORTED"):
                    return None
                if not self._is(error, "NVML_ERROR_FUNCTION_NOT_FOUND"):
                    raise
        return None

    def _unreadable(self, gpu: Gpu, error: Exception) -> GpuSample:
        self._stale = True
        self._reset_if_uninitialised(error)
        if self._is(error, "NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED"):
            self._lost.add(gpu.uuid)
        return GpuSample(
            uuid=gpu.uuid,
            memory_total_mib=gpu.memory_total_mib,
            error=str(error) or type(error).__name__,
            lost=gpu.uuid in self._lost,
        )

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...] | None:
        """The numbers that NVML names processes by, with their memory."""
        compute = self._listed("nvmlDeviceGetComputeRunningProcesses", handle)
        if compute is None:
            return None
        memory: dict[int, int | None] = {}
        for entry in (*compute, *(self._listed("nvmlDeviceGetGraphicsRunningProcesses", handle) or ())):
            used = entry.usedGpuMemory
            # All bits set is NVML's "not available", and so is a 0, in containers (HAMi-core#112): none is listed that has
            # nothing. A process in both lists shows the same figure in both.
            known = None if not used or used >= (1 << 64) - 1 else int(used) // MIB
            before = memory.get(entry.pid)
            memory[entry.pid] = known if before is None else max(before, known or 0)
        return tuple(GpuProcess(pid=int(pid), memory_mib=used) for pid, used in memory.items())

    def _listed(self, function: str, handle: Any) -> list[Any] | None:
        listed = self._optional(function, handle)
        if listed is None:
            listed = self._optional(f"{function}_v2", handle)
        return None if listed is None else list(listed)

    # --- calls that may fail

    def _optional(self, function: str, *args: Any) -> Any:
        """What NVML answers; ``None`` for whatever this GPU, driver or binding lacks."""
        try:
            call: Callable[..., Any] = getattr(self._nvml, function)
            return call(*args)
        except self._failures:
            return None

    def _is(self, error: Exception, *names: str) -> bool:
        code = getattr(error, "value", None)
        return code is not None and any(getattr(self._nvml, name, None) == code for name in names)

    def _reset_if_uninitialised(self, error: Exception) -> None:
        if self._is(error, "NVML_ERROR_UNINITIALIZED"):
            self._nvml = None
            self._watched = frozenset()


def _total(memory: Any) -> int | None:
    """MiB of the GPU's memory; ``None`` where it is not counted. A total of 0 says no more than that (nvtop#411)."""
    return (int(memory.total) // MIB or None) if memory else None
