"""Claims the GPUs that ``--gpus`` selects and no other supervisor holds. In the supervisor, as it starts."""

from __future__ import annotations

from collections.abc import Callable

from supervisor.config.settings import Settings
from supervisor.gpu import locks, pinning
from supervisor.gpu.records import Gpu, Listing


def claim_gpus(
    settings: Settings, listing: Listing, visible: str | None, holder: locks.Holder, note: Callable[[str], None]
) -> tuple[list[Gpu], list[locks.Lock]]:
    """Select GPUs from ``listing`` and lock them; return the GPUs and their locks, none where the CPU serves.

    ``visible`` is the parent's ``CUDA_VISIBLE_DEVICES``. ``note`` is called with messages for the user about the choice.

    Raises:
        GpuError: a requested GPU does not exist, or is hidden.
        LockedError: another supervisor holds it.
        UsageError: the folder of the locks cannot be used.
    """
    gpus = pinning.select(settings.gpus, listing.gpus, visible, listing.reason)
    if not gpus:
        note(_why_no_gpu(listing, visible, settings.workers))
        return [], []
    if listing.reason:
        note(listing.reason)
    if settings.simulate_gpus:
        note(f"{len(gpus)} simulated GPUs: their memory is the workers' own memory")
    if settings.share_gpus:
        return gpus, []
    ours, held = locks.lock_gpus(gpus, holder, settings.lock_dir, skip_held=settings.gpus == "auto")
    if len(ours) < len(gpus):
        others = [gpu for gpu in gpus if gpu not in ours]
        note(f"left to other supervisors: {pinning.describe(others)}")
    return ours, held


def _why_no_gpu(listing: Listing, visible: str | None, workers: int) -> str:
    slots = f"{workers} CPU slot{'s' if workers != 1 else ''}"
    if listing.gpus:
        return f"CUDA_VISIBLE_DEVICES={visible} hides every GPU of this machine: serving on {slots}"
    return f"no GPU on this machine, serving on {slots}: {listing.reason or 'NVML shows none'}"
