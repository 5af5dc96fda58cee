"""`supervise gpus`: what NVML shows of this machine, and which supervisor holds it; a process of its own."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from pathlib import Path

import click

from supervisor.cli import remote
from supervisor.cli.gpu_list import ListedGpu, ListedProcess
from supervisor.gpu import locks
from supervisor.gpu.client import Reader, ReaderGone
from supervisor.gpu.records import Gpu, GpuSample, Listing, Reading, WorkerRef

LIST_S = 30.0
"""How long the list may take: without a persistence daemon the driver needs seconds for each GPU to wake up."""

READ_S = 10.0
"""How long reading them may take."""


@click.command(context_settings=remote.HELP)
@click.option(
    "--lock-dir",
    envvar="SUPERVISE_LOCK_DIR",
    type=click.Path(path_type=Path),
    default=locks.DEFAULT_DIR,
    show_default=True,
    help="Where supervisors lock GPUs.",
)
@click.option(
    "--simulate-gpus",
    envvar="SUPERVISE_SIMULATE_GPUS",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Show N pretend GPUs in place of real ones.",
)
@remote.as_json
def gpus(lock_dir: Path, simulate_gpus: int, as_json: bool) -> int:
    """Show this machine's GPUs, what runs on them, and which supervisor holds each. No supervisor is asked.

    Where NVML lists no memory or processes of a GPU (in containers often), they are not shown.

    Exit codes: 0, or 1 when there is no GPU or it cannot be read.
    """
    listing, holders, reading = look(lock_dir, simulate_gpus)
    trouble = listing.reason or reading.error or ("" if listing.gpus else "NVML shows no GPU")
    if trouble:
        remote.complain(trouble)
    views = [_view(gpu, reading.of(gpu.uuid), holders.get(gpu.uuid)) for gpu in listing.gpus]
    if not views:
        return 1
    if remote.for_people(as_json):
        from supervisor.cli import tables  # noqa: PLC0415 - rich, which only people wait for

        tables.gpus(views)
    else:
        for view in views:
            remote.put_json(view)
    return 1 if reading.error else 0


def look(folder: Path, simulate: int) -> tuple[Listing, dict[str, locks.Holder], Reading]:
    """The GPUs, who holds which by the locks in ``folder``, and a reading in which processes below a holder have its pid as
    their ``slot``."""
    reader = Reader(simulate, READ_S)
    try:
        listing = reader.list_gpus(LIST_S)
        found = {gpu.uuid: locks.gpu_holder(gpu, folder) for gpu in listing.gpus}
        holders = {uuid: holder for uuid, holder in found.items() if holder is not None}
        trees = {str(holder.pid): WorkerRef(holder.pid) for holder in holders.values() if holder.alive}
        reading = _read(reader, {} if simulate else trees) if listing.gpus else Reading(0, 0.0)
        return listing, holders, reading
    finally:
        reader.close()


def _read(reader: Reader, trees: Mapping[str, WorkerRef]) -> Reading:
    number = reader.ask(trees, time.monotonic())
    while True:
        deadline = reader.deadline()
        select.select([reader.fileno()], [], [], None if deadline is None else max(0.0, deadline - time.monotonic()))
        now = time.monotonic()
        for event in (*reader.receive(now), *reader.tick(now)):
            if isinstance(event, ReaderGone):
                return Reading(number, now, error=f"the GPUs cannot be read: {event.reason}")
            if isinstance(event, Reading) and event.number == number:
                return event


def _view(gpu: Gpu, sample: GpuSample | None, holder: locks.Holder | None) -> ListedGpu:
    sample = sample or GpuSample(gpu.uuid)
    processes = sample.processes
    return ListedGpu(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        mig=gpu.mig,
        parent=gpu.parent,
        simulated=gpu.simulated,
        # A pretend GPU's memory is that of the workers on it, which only their supervisor knows.
        memory_used_mib=None if gpu.simulated else sample.memory_used_mib,
        memory_total_mib=sample.memory_total_mib or gpu.memory_total_mib,
        utilization=sample.utilization,
        temperature_c=sample.temperature_c,
        power_w=sample.power_w,
        processes=None
        if processes is None or gpu.simulated
        else tuple(
            ListedProcess(each.pid, each.memory_mib, each.name, each.visible, int(each.slot) if each.slot else None)
            for each in processes
        ),
        holder=holder,
        error=sample.error,
        lost=sample.lost,
    )
