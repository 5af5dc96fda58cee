"""Formats causes as text for statuses, lists, logs and screens; pure, in the supervisor. All causes are worded here.

A phrase says what a worker did (``was killed by SIGKILL``), so it can follow the worker's name, or what happened (``a cancelled
job was still running``). The table has one for each cause; those that combine several facts are functions.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, Union

from supervisor import cause as c
from supervisor.errors import SecretError
from supervisor.job import Job
from supervisor.protocol.job_error import first_line

Cause = Union[c.JobCause, c.SlotReason, c.TemplateEnd]

_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP}
)

XIDS = {
    13: "graphics engine exception",
    31: "GPU memory page fault",
    43: "GPU stopped processing",
    45: "preemptive cleanup, due to previous errors",
    48: "double bit ECC error",
    62: "internal micro-controller halt",
    63: "ECC page retirement or row remapping",
    64: "ECC page retirement or row remapping failed",
    68: "video processor exception",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high single-bit ECC error rate",
    94: "contained ECC error",
    95: "uncontained ECC error",
    109: "context switch timeout",
    119: "GSP RPC timeout",
    120: "GSP error",
    154: "GPU recovery action changed",
}
"""The most common ones, from NVIDIA's Xid catalogue; others are shown by their number alone."""


def words(cause: Cause) -> str:
    """Format ``cause`` as a phrase; for a job's cause, a whole sentence."""
    made = _WORDS[type(cause)]
    return made.format(cause) if isinstance(made, str) else made(cause)


def of_worker(end: c.WorkerEnd) -> str:
    """Format why a worker ended as a phrase that follows its name."""
    return f"was stopped because {words(end)}" if isinstance(end, c.EndedBecause) else words(end)


def error_of(job: Job) -> str | None:
    """Return the ``error`` of ``job`` that clients see: the handler's own, or why the program ended it."""
    return job.error if job.cause is None else words(job.cause)


def error_line(job: Job) -> str | None:
    """Return the first line of ``error_of(job)``, for lists; for an exception its type and message, for a dead worker its end."""
    error = _of_lost(job.cause) if isinstance(job.cause, c.WorkerLost) else error_of(job)
    return first_line(error) if error else None


def xid(code: int) -> str:
    """Format the driver's error number ``code``, with its meaning if known."""
    return f"Xid {code} ({XIDS[code]})" if code in XIDS else f"Xid {code}"


def unknown_memory(gpus: tuple[c.UnknownGpu, ...]) -> str:
    """Explain why the memory in use cannot be attributed to a process."""
    return "; ".join(map(_unknown, gpus))


def _signalled(end: c.Signalled) -> str:
    try:
        signum = signal.Signals(end.signum)
    except ValueError:
        return f"was killed by signal {end.signum}"
    if signum is signal.SIGKILL:
        return "was killed by SIGKILL; it may have run out of memory"
    return f"crashed with {signum.name}" if signum in _CRASHES else f"was killed by {signum.name}"


def _too_many_processes(end: c.TooManyProcesses) -> str:
    more = " dead processes that it did not wait for" if end.dead else " processes"
    return f"had more than {end.limit}{more} (--max-processes)"


def _gpus_lost(end: c.GpusLost) -> str:
    return f"lost its {', '.join(map(_lost, end.gpus))}"


def _lost(gpu: c.LostGpu) -> str:
    if gpu.xid is not None:
        return f"GPU {gpu.index}: {xid(gpu.xid)}"
    return f"GPU {gpu.index} ({gpu.error or 'GPU is lost'})"


def _held(gpu: c.HeldGpu) -> str:
    label = f"{gpu.gpu}: " if gpu.gpu is not None else ""
    if gpu.mib is None:
        return f"{label}no reading"
    listed = ", ".join(f"pid {process.pid} ({process.name or 'unknown'})" for process in gpu.by)
    return f"{label}{gpu.mib} MiB still in use by {listed or 'no process that NVML lists'}"


def _unknown(gpu: c.UnknownGpu) -> str:
    label = f"{gpu.gpu}: " if gpu.gpu is not None else ""
    more = f"{gpu.mib} MiB more in use than before, and NVML"
    return (
        label
        + {
            c.Unknown.NO_COUNTER: "NVML has no counter of this GPU's memory",
            c.Unknown.NO_READING: "NVML gave no reading of its memory",
            c.Unknown.NO_BASELINE: "NVML gave no reading from before the worker started",
            c.Unknown.NO_PROCESSES: f"{more} lists no processes",
            c.Unknown.NOT_SHOWN: f"{more} does not show whose it is",
            c.Unknown.UNSEEN: f"{more} lists pid {', '.join(map(str, gpu.unseen))}, unknown here",
            c.Unknown.NEIGHBOUR_ENDED: (
                "another worker on it has ended meanwhile, and NVML does not show whose memory came back"
            ),
        }[gpu.why]
    )


def _worker_lost(cause: c.WorkerLost) -> str:
    tail = "; its last output:\n" + "\n".join(cause.tail) if cause.tail else ""
    return _of_lost(cause) + tail


def _of_lost(cause: c.WorkerLost) -> str:
    return f"worker {cause.slot} (pid {cause.pid}) {of_worker(cause.end)}"


def _timed_out(cause: c.ExecutionTimedOut) -> str:
    return f"the job ran longer than its execution time-out of {cause.limit_ms / 1000:g} s"


def _spare(cause: c.SpareCause) -> str:
    why = ""
    if cause.idle_s is not None:
        why = f"idle for {cause.idle_s:g} s; "
    elif cause.most is not None:
        why = f"--max-workers {cause.most} are in service; "
    return f"{why}starts when jobs wait"


def _too_large(cause: c.TooLarge) -> str:
    what = "the result" if cause.chunk is None else f"chunk {cause.chunk}"
    return f"{what} is {cause.size} bytes long, more than --max-result allows ({cause.limit})"


def _killed(cause: c.SupervisorKilled) -> str:
    how = " (--on-restart fail)" if cause.starts is None else f", {cause.starts} times"
    return f"the supervisor was killed while the job ran{how}"


def _closed(cause: c.SupervisorClosed) -> str:
    return "the supervisor was closed before the job ended" + ("; it waits in its store" if cause.kept else "")


_REQUESTERS = {
    c.RefreshBy.HANDLER: "the handler",
    c.RefreshBy.CUDA_ERROR: "a CUDA error ({0.error})",
    c.RefreshBy.FULL_GPU: "a full GPU (--refresh-on-oom)",
    c.RefreshBy.EACH_JOB: "--refresh-worker",
    c.RefreshBy.SOME_JOBS: "--refresh-after-jobs",
    c.RefreshBy.HELD_MEMORY: "--refresh-above",
    c.RefreshBy.HAND: "hand",
    c.RefreshBy.RELOAD: "a reload",
}

_NO_FAULTS = {
    c.EndedBecause.TEMPLATE_DIED: "the template process died",
    c.EndedBecause.CANCELLED_JOB_RAN: "a cancelled job was still running",
    c.EndedBecause.OVERDUE_JOB_RAN: "a timed-out job was still running",
    c.EndedBecause.SUPERVISOR_STOPS: "the supervisor is stopping",
}

_WORDS: dict[type, Union[str, Callable[[Any], str]]] = {
    # how a process ended
    c.Exited: "exited with code {0.code}",
    c.Signalled: _signalled,
    # why there is no template
    c.TemplateNotStarted: "could not be started: {0.error}",
    c.TemplateVanished: "ended",
    # what requested a refresh
    c.RefreshCause: lambda refresh: _REQUESTERS[refresh.by].format(refresh),
    # why a slot is paused
    c.PausedByHand: "paused by hand",
    c.SpareCause: _spare,
    # why a worker ended
    c.TooManyProcesses: _too_many_processes,
    c.HandlerNotLoaded: "could not load the handler: {0.message}",
    c.ForkRefused: "could not be forked: {0.error}",
    c.NoTemplate: lambda end: f"was never forked: the template process {words(end.end)}",
    c.EndedBecause: lambda why: _NO_FAULTS[why],
    c.StartTimedOut: "did not become ready within {0.limit_s:g} s (--start-timeout)",
    c.CancelIgnored: "did not stop a cancelled job within {0.limit_s:g} s (--grace)",
    c.ProtocolBroken: "broke the protocol: {0.what}",
    c.GpusLost: _gpus_lost,
    # what keeps a slot from its next worker
    c.MemoryStaysInUse: lambda obstacle: "; ".join(map(_held, obstacle.gpus)),
    c.StuckInKernel: "process {0.pid} is still there {0.waited_s:g} s after SIGKILL:"
    " it hangs in the kernel, perhaps in a driver",
    # why a job ended
    c.WorkerLost: _worker_lost,
    c.TooLarge: _too_large,
    c.StreamTooLarge: "its {0.chunks} chunks, each with {0.cost} bytes for its place, are larger than {0.limit} bytes"
    " ({0.results} times --max-result, at least {0.results} MiB)",
    c.NotEncodable: "{0.what}",
    c.ExecutionTimedOut: _timed_out,
    c.TtlPassed: "the job was older than its ttl",
    c.SupervisorKilled: _killed,
    c.ChunksHandedOut: "the supervisor was killed after some chunks of the job were delivered"
    " (--requeue-streams runs it again)",
    c.SupervisorStopped: "the supervisor stopped while the job ran",
    c.SecretUnreadable: lambda cause: str(SecretError(cause.file, cause.error)),
    c.SupervisorClosed: _closed,
    c.SupervisorFailed: "the supervisor failed: {0.error}",
    c.UnknownCause: "the job ended for a reason that this version of supervise does not know: {0.text}",
}
