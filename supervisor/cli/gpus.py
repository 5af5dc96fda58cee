"""`supervise gpus`: what NVML shows of this machine, and which supervisor holds it; a process of its own."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from supervisor.cli import remote
from supervisor.gpu import locks
from supervisor.gpu.client import Reader, ReaderGone
from supervisor.gpu.records import Gpu, GpuSample, Listing, Reading, WorkerRef
from supervisor.protocol import views

LIST_S = 30.0
"""How long the list may take: without a persistence daemon the driver needs seconds for each GPU to wake up."""

READ_S = 10.0
"""How long reading them may take."""


class ListedProcess(views.GpuProcess, frozen=True, rename="camel"):
    """A process on a GPU; ``supervisor`` is the pid of the supervisor below which it runs, if that is known."""

    supervisor: int | None = None


class ListedGpu(views.Gpu, frozen=True, rename="camel"):
    """A GPU or MIG instance (``mig``: its number, ``parent``: its GPU's UUID), and the supervisor whose lock is on it."""

    mig: int | None = None
    parent: str | None = None
    processes: tuple[ListedProcess, ...] | None = None
    holder: locks.Holder | None = None


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
    help="Show N pretend GPUs instead of real ones.",
)
@remote.as_json
def gpus(lock_dir: Path, simulate_gpus: int, as_json: bool) -> int:
    """Show this machine's GPUs, what runs on them, and which supervisor holds each. Needs no running supervisor.

    Where NVML lists no memory or processes of a GPU (in containers often), they are not shown.

    Exit codes: 0, or 1 when there is no GPU or it cannot be read.
    """
    listing, holders, reading = look(lock_dir, simulate_gpus)
    trouble = listing.reason or reading.error or ("" if listing.gpus else "NVML shows no GPU")
    if trouble:
        remote.complain(trouble)
    listed = [_view(gpu, reading.of(gpu.uuid), holders.get(gpu.uuid)) for gpu in listing.gpus]
    if not listed:
        return 1
    if remote.for_people(as_json):
        show_table(listed)
    else:
        for view in listed:
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


def show_table(gpus: Sequence[ListedGpu]) -> None:
    """Print a line for each GPU, and below them one for each process."""
    from supervisor.cli.tables import column, known, show  # noqa: PLC0415 - rich, which only people wait for
    from supervisor.dashboard.text import mib  # noqa: PLC0415 - as above

    def memory(gpu: ListedGpu) -> str | None:
        used = known(gpu.memory_used_mib, mib)
        return used if gpu.memory_total_mib is None else f"{used or '-'} of {mib(gpu.memory_total_mib)}"

    show(
        [
            column("gpu", gpus, lambda gpu: gpu.index if gpu.mig is None else f"{gpu.index} MIG {gpu.mig}"),
            column("name", gpus, lambda gpu: gpu.name, 2, shrinks=True),
            column("uuid", gpus, lambda gpu: gpu.uuid, 5),
            column("memory", gpus, memory, 1, right=True),
            column("load", gpus, lambda gpu: known(gpu.utilization, "{}%".format), 3, right=True),
            column("temp", gpus, lambda gpu: known(gpu.temperature_c, "{}°C".format), 4, right=True),
            column("held by", gpus, lambda gpu: gpu.error or gpu.holder, style=lambda gpu: "red" if gpu.error else ""),
        ],
        gpus,
    )
    pairs = [(gpu, process) for gpu in gpus for process in gpu.processes or ()]
    if pairs:
        click.echo()
        show(
            [
                column("gpu", pairs, lambda pair: pair[0].index if pair[0].mig is None else pair[0].uuid),
                column("pid", pairs, lambda pair: pair[1].pid, right=True),
                column("memory", pairs, lambda pair: known(pair[1].memory_mib, mib), right=True),
                column("process", pairs, lambda pair: pair[1].name or "(not of this container)", shrinks=True),
                column("below", pairs, lambda pair: pair[1].supervisor and f"supervise, pid {pair[1].supervisor}", 1),
            ],
            pairs,
        )
