"""Every cause with its words, and those of jobs with the JSON that the store keeps: what was released once stays readable."""

from __future__ import annotations

import msgspec

from supervisor import cause as c

KILLED, EXITED = c.Signalled(9), c.Exited(3)
MEMORY = c.MemoryStaysInUse((c.HeldGpu(300, (c.MemoryHolder(10), c.MemoryHolder(11, "python"))),))

WORDS: list[tuple[msgspec.Struct, str]] = [
    # how a process ended
    (EXITED, "exited with code 3"),
    (c.Exited(0), "exited with code 0"),
    (KILLED, "was killed by SIGKILL; it may have run out of memory"),
    (c.Signalled(15), "was killed by SIGTERM"),
    (c.Signalled(11), "crashed with SIGSEGV"),
    (c.Signalled(6), "crashed with SIGABRT"),
    (c.Signalled(99), "was killed by signal 99"),
    # why there is no template
    (c.TemplateNotStarted("no such file"), "could not be started: no such file"),
    (c.TemplateVanished(), "ended"),
    # who asked for a refresh
    (c.RefreshCause(c.RefreshBy.HANDLER), "the handler"),
    (c.RefreshCause(c.RefreshBy.CUDA_ERROR, "illegal access"), "a CUDA error (illegal access)"),
    (c.RefreshCause(c.RefreshBy.FULL_GPU), "a full GPU (--refresh-on-oom)"),
    (c.RefreshCause(c.RefreshBy.EACH_JOB), "--refresh-worker"),
    (c.RefreshCause(c.RefreshBy.SOME_JOBS), "--refresh-after-jobs"),
    (c.RefreshCause(c.RefreshBy.HELD_MEMORY), "--refresh-above"),
    (c.RefreshCause(c.RefreshBy.HAND), "hand"),
    (c.RefreshCause(c.RefreshBy.RELOAD), "a reload"),
    # why a slot is paused
    (c.PausedByHand(), "paused by hand"),
    (c.SpareCause(), "starts when jobs wait"),
    (c.SpareCause(idle_s=60.0), "idle for 60 s; starts when jobs wait"),
    (c.SpareCause(most=2), "--max-workers 2 are in service; starts when jobs wait"),
    # why a worker ended
    (c.TooManyProcesses(64), "had more than 64 processes (--max-processes)"),
    (
        c.TooManyProcesses(1024, dead=True),
        "had more than 1024 dead processes that it did not wait for (--max-processes)",
    ),
    (c.HandlerNotLoaded("h.py raised: {no}"), "could not load the handler: h.py raised: {no}"),
    (c.ForkRefused("no memory"), "could not be forked: no memory"),
    (c.NoTemplate(EXITED), "was never forked: the template process exited with code 3"),
    (c.EndedBecause.TEMPLATE_DIED, "the template process died"),
    (c.StartTimedOut(60.0), "did not become ready within 60 s (--start-timeout)"),
    (c.EndedBecause.CANCELLED_JOB_RAN, "a cancelled job was still running"),
    (c.EndedBecause.OVERDUE_JOB_RAN, "a timed-out job was still running"),
    (c.CancelIgnored(2.5), "did not stop a cancelled job within 2.5 s (--grace)"),
    (c.ProtocolBroken("nonsense"), "broke the protocol: nonsense"),
    (c.GpusLost((c.LostGpu(0, xid=79),)), "lost its GPU 0: Xid 79 (GPU has fallen off the bus)"),
    (
        c.GpusLost((c.LostGpu(0, xid=777), c.LostGpu(1, error="Unknown Error"), c.LostGpu(2))),
        "lost its GPU 0: Xid 777, GPU 1 (Unknown Error), GPU 2 (GPU is lost)",
    ),
    (c.EndedBecause.SUPERVISOR_STOPS, "the supervisor is stopping"),
    # what keeps a slot from its next worker
    (MEMORY, "300 MiB still in use by pid 10 (unknown), pid 11 (python)"),
    (
        c.MemoryStaysInUse((c.HeldGpu(2000, gpu="gpu0"), c.HeldGpu(None, gpu="gpu1"))),
        "gpu0: 2000 MiB still in use by no process that NVML lists; gpu1: no reading",
    ),
    (
        c.StuckInKernel(41, 10.0),
        "process 41 is still there 10 s after SIGKILL: it hangs in the kernel, perhaps in a driver",
    ),
]

JOB_CAUSES: list[tuple[msgspec.Struct, str, str]] = [
    (
        c.WorkerLost("gpu0", 41, KILLED),
        "worker gpu0 (pid 41) was killed by SIGKILL; it may have run out of memory",
        '{"type":"worker_lost","slot":"gpu0","pid":41,"end":{"type":"signalled","signum":9},"tail":[]}',
    ),
    (
        c.WorkerLost("gpu0", 41, EXITED, ("one", "two: {0}")),
        "worker gpu0 (pid 41) exited with code 3; its last output:\none\ntwo: {0}",
        '{"type":"worker_lost","slot":"gpu0","pid":41,"end":{"type":"exited","code":3},"tail":["one","two: {0}"]}',
    ),
    (
        c.WorkerLost("gpu0", 41, c.EndedBecause.TEMPLATE_DIED),
        "worker gpu0 (pid 41) was stopped because the template process died",
        '{"type":"worker_lost","slot":"gpu0","pid":41,"end":"template_died","tail":[]}',
    ),
    (
        c.WorkerLost("gpu0", 41, c.GpusLost((c.LostGpu(0, 79),))),
        "worker gpu0 (pid 41) lost its GPU 0: Xid 79 (GPU has fallen off the bus)",
        (
            '{"type":"worker_lost","slot":"gpu0","pid":41,'
            '"end":{"type":"gpus_lost","gpus":[{"index":0,"xid":79,"error":null}]},"tail":[]}'
        ),
    ),
    (
        c.TooLarge(300, 200),
        "the result is 300 bytes long, more than --max-result allows (200)",
        '{"type":"too_large","size":300,"limit":200,"chunk":null}',
    ),
    (
        c.TooLarge(300, 200, 2),
        "chunk 2 is 300 bytes long, more than --max-result allows (200)",
        '{"type":"too_large","size":300,"limit":200,"chunk":2}',
    ),
    (
        c.StreamTooLarge(7, 100, 10_485_760, 10),
        (
            "its 7 chunks, each with 100 bytes for its place, are larger than 10485760 bytes "
            "(10 times --max-result, at least 10 MiB)"
        ),
        '{"type":"stream_too_large","chunks":7,"cost":100,"limit":10485760,"results":10}',
    ),
    (
        c.NotEncodable("output.images[0]: cannot encode PIL.Image.Image"),
        "output.images[0]: cannot encode PIL.Image.Image",
        '{"type":"not_encodable","what":"output.images[0]: cannot encode PIL.Image.Image"}',
    ),
    (
        c.ExecutionTimedOut(1500),
        "the job ran longer than its execution time-out of 1.5 s",
        '{"type":"execution_timed_out","limit_ms":1500}',
    ),
    (c.TtlPassed(), "the job was older than its ttl", '{"type":"ttl_passed"}'),
    (
        c.SupervisorKilled(),
        "the supervisor was killed while the job ran (--on-restart fail)",
        '{"type":"supervisor_killed","starts":null}',
    ),
    (
        c.SupervisorKilled(3),
        "the supervisor was killed while the job ran, 3 times",
        '{"type":"supervisor_killed","starts":3}',
    ),
    (
        c.ChunksHandedOut(),
        "the supervisor was killed after some chunks of the job were delivered (--requeue-streams runs it again)",
        '{"type":"chunks_handed_out"}',
    ),
    (c.SupervisorStopped(), "the supervisor stopped while the job ran", '{"type":"supervisor_stopped"}'),
    (
        c.SecretUnreadable("jobs.db.secrets/ab", "Permission denied"),
        "jobs.db.secrets/ab: the file of a job's s3Config cannot be used (Permission denied)",
        '{"type":"secret_unreadable","file":"jobs.db.secrets/ab","error":"Permission denied"}',
    ),
    (
        c.SupervisorClosed(kept=True),
        "the supervisor was closed before the job ended; it waits in its store",
        '{"type":"supervisor_closed","kept":true}',
    ),
    (
        c.SupervisorClosed(kept=False),
        "the supervisor was closed before the job ended",
        '{"type":"supervisor_closed","kept":false}',
    ),
    (
        c.SupervisorFailed("KeyError('a')"),
        "the supervisor failed: KeyError('a')",
        '{"type":"supervisor_failed","error":"KeyError(\'a\')"}',
    ),
    (
        c.UnknownCause('{"type":"new"}'),
        'the job ended for a reason that this version of supervise does not know: {"type":"new"}',
        '{"type":"unknown_cause","text":"{\\"type\\":\\"new\\"}"}',
    ),
]
