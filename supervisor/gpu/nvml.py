"""Reads real GPUs through NVML (``nvidia-ml-py``, ``import pynvml``); only in the reader process, since a call may hang for ever.

Any function may be missing: drivers are old, GPUs lack sensors, containers hide processes. What cannot be read is ``None``. A GPU
is ``lost`` only if NVML reports it as lost or needing a reset, never on unknown errors or time-outs.
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
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "the NVIDIA driver and its library have different versions; a reboot fixes that",
    "NVML_ERROR_NO_PERMISSION": "this user may not use the NVIDIA driver",
}
"""Errors of the initialisation, as messages for the user."""

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
    """No GPU can be read now; the message says why."""


class NvmlSource:
    """The GPUs of the driver. Initialises once: repeated initialisation has hung on some drivers (go-nvml#152)."""

    def __init__(self, xids: XidWatch, attribution: Attribution) -> None:
        """Do not initialise NVML yet; ``xids`` will watch the GPUs, and ``attribution`` attribute the listed processes."""
        self._nvml: Any = None
        self._failures: tuple[type[Exception], ...] = ()
        self._devices: dict[str, Watched] = {}
        self._lost: set[str] = set()
        self._stale = True
        self._xids = xids
        self._attribution = attribution
        self._watched: frozenset[str] = frozenset()

    def listing(self) -> Listing:
        """Return the GPUs that workers can be pinned to; MIG instances in place of a GPU in MIG mode."""
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
        """Read each GPU listed before or added since; processes of a tree in ``workers`` (by slot) get that slot.

        Raises:
            SourceError: no GPU can be read.
        """
        self._initialise()
        if self._stale:
            self._renew_handles()
        lost = set(self._lost)
        samples = [self._read(device) for device in self._devices.values()]
        if lost - self._lost:
            self._watched = frozenset()  # registrations may be lost with a GPU
        self._watch_xids()
        return self._attribution.attribute(samples, workers)

    # --- finding GPUs

    def _initialise(self) -> None:
        if self._nvml is not None:
            return
        try:
            import pynvml  # noqa: PLC0415 - not needed in the simulation
        except ImportError as error:
            raise SourceError(f"the package nvidia-ml-py is not installed ({error})") from error
        # The library raises more than its own errors if a function or a field is missing.
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
        """Return the devices by UUID, and messages about GPUs that NVML counts but cannot describe."""
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
        """Yield GPU ``index``, or its MIG instances if it is in MIG mode."""
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
        """Get new handles, which a returned GPU needs; a GPU that NVML cannot describe now keeps its old one."""
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
        """Return the recovery action that the GPU needs before further use; ``None`` for none, or on older drivers."""
        field = getattr(self._nvml, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", None)
        values = self._optional("nvmlDeviceGetFieldValues", handle, [field]) if field is not None else None
        if values is None or values[0].nvmlReturn != 0 or not (action := int(values[0].value.uiVal)):
            return None
        return f"the driver asks for {_RECOVERY.get(action, f'recovery action {action}')}"

    def _memory(self, handle: Any) -> Any:
        """Return total, free and used bytes; ``None`` without a counter: the GPU shares the host's memory (GB10, nvitop#208), or
        the driver has no such function."""
        # The second only where the first never works: it excludes reserved memory, so their figures are not comparable.
        for version in ({}, {"version": self._nvml.nvmlMemory_v2}):
            try:
                return self._nvml.nvmlDeviceGetMemoryInfo(handle, **version)
            except self._failures as error:  # noqa: PERF203 - the other version is tried next
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
        """Return the listed processes, by NVML's numbers, with their memory."""
        compute = self._listed("nvmlDeviceGetComputeRunningProcesses", handle)
        if compute is None:
            return None
        memory: dict[int, int | None] = {}
        for entry in (*compute, *(self._listed("nvmlDeviceGetGraphicsRunningProcesses", handle) or ())):
            used = entry.usedGpuMemory
            # All bits set is NVML's "not available", and so is 0 in containers (HAMi-core#112): a listed process has memory.
            # A process in both lists has the same figure in both.
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
        """Call ``function``; return ``None`` if this GPU, driver or binding does not support it."""
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
    """Return the MiB of the GPU's memory; ``None`` if unknown, which a total of 0 means too (nvtop#411)."""
    return (int(memory.total) // MIB or None) if memory else None
