"""Every notice with its kind, its level, its line, and its fields in the JSON log: what readers of that rely on."""

from __future__ import annotations

from typing import Any

from supervisor import cause as c
from supervisor import notice as n

INFO, WARNING, ERROR = n.Level
GPU0 = {"slot": "gpu0"}
HELD = c.MemoryStaysInUse((c.HeldGpu(300, (c.MemoryHolder(10),)),))
REPORT = {"end_s": 0.004, "release_s": 0.001, "start_s": 0.02}

NOTICES: list[tuple[n.Notice, str, n.Level, str, dict[str, Any]]] = [
    # workers and slots
    (
        n.WorkerReady("gpu0", 41, "generator", 2.25),
        "worker",
        INFO,
        "gpu0: ready (pid 41, generator, loaded in 2.2 ms)",
        GPU0,
    ),
    (
        n.WorkerRestarts("gpu0", 41, c.Signalled(11)),
        "restart",
        INFO,
        "gpu0: worker (pid 41) crashed with SIGSEGV; restarting",
        GPU0,
    ),
    (
        n.WorkerRestarts("gpu0", 41, c.EndedBecause.CANCELLED_JOB_RAN),
        "restart",
        INFO,
        "gpu0: worker (pid 41) was stopped because a cancelled job was still running; restarting",
        GPU0,
    ),
    (
        n.StartFailed("gpu0", c.Exited(1), 0.5),
        "worker",
        INFO,
        "gpu0: exited with code 1; next try in 0.5 s",
        {**GPU0, "broken": False},
    ),
    (n.StartFailed("gpu0", c.Exited(1), None), "worker", INFO, "gpu0: exited with code 1", {**GPU0, "broken": False}),
    (
        n.SlotBroken("gpu0", c.Exited(1), 300.0),
        "worker",
        ERROR,
        "gpu0: exited with code 1; next try in 300 s",
        {**GPU0, "broken": True},
    ),
    (
        n.Refreshed("gpu0", c.RefreshCause(c.RefreshBy.HANDLER), **REPORT, freed_mib=812, verified=True),
        "refresh",
        INFO,
        "gpu0: refreshed in 25.0 ms (end 4.0, release 1.0, start 20.0), 812 MiB freed; requested by the handler",
        {**GPU0, "report": {"cause": "the handler", **REPORT, "freed_mib": 812, "verified": True}},
    ),
    (
        n.Refreshed("gpu0", c.RefreshCause(c.RefreshBy.HAND), **REPORT, freed_mib=None, verified=False),
        "refresh",
        INFO,
        "gpu0: refreshed in 25.0 ms (end 4.0, release 1.0, start 20.0), unverified; requested by hand",
        {**GPU0, "report": {"cause": "hand", **REPORT, "freed_mib": None, "verified": False}},
    ),
    (n.SlotPaused("gpu0", c.PausedByHand()), "worker", INFO, "gpu0: paused by hand", GPU0),
    (
        n.WorkerStuck("gpu0", c.StuckInKernel(41, 10.0)),
        "warning",
        WARNING,
        "gpu0: process 41 is still there 10 s after SIGKILL: it hangs in the kernel, perhaps in a driver",
        GPU0,
    ),
    (n.WorkerWarned("gpu0", "look: {0}"), "warning", WARNING, "gpu0: look: {0}", GPU0),
    (
        n.WarningsLeftOut("gpu0", 50),
        "warning",
        WARNING,
        "gpu0: more than 50 warnings of its worker: the others are left out",
        GPU0,
    ),
    (
        n.LastMessageUnreadable("gpu0", "malformed"),
        "warning",
        WARNING,
        "gpu0: its last message was unreadable: malformed",
        GPU0,
    ),
    (
        n.PortTaken("gpu1", (n.PortOwner("gpu0", (9000,)), n.PortOwner("gpu2", (1, 2, 3, 4, 5, 6)))),
        "warning",
        WARNING,
        (
            "gpu1: the address that it wanted is in use, and the worker in slot gpu0 listens on port 9000; the worker in slot "
            "gpu2 listens on ports 1, 2, 3, 4, 5, …: workers share this machine, so give each a port of its own, such as "
            "9000 + int(os.environ['SUPERVISE_SLOT_INDEX'])"
        ),
        {"slot": "gpu1"},
    ),
    # GPUs
    (n.SlotOut("gpu0", HELD), "gpu", ERROR, "gpu0: held: 300 MiB still in use by pid 10 (unknown)", GPU0),
    (
        n.SlotOut("gpu0", c.GpusLost((c.LostGpu(0, 79),))),
        "gpu",
        ERROR,
        "gpu0: lost its GPU 0: Xid 79 (GPU has fallen off the bus)",
        GPU0,
    ),
    (
        n.ReleaseUnverified("gpu0", (c.UnknownGpu(c.Unknown.NO_READING),)),
        "gpu",
        INFO,
        "gpu0: release unverified: NVML gave no reading of its memory",
        GPU0,
    ),
    (
        n.HoldsWithoutJob("gpu0", 900, 500),
        "warning",
        WARNING,
        "gpu0: holds 900 MiB without having run a job, more than --refresh-above 500",
        GPU0,
    ),
    (
        n.ProgramXid("gpu0", 0, 13),
        "warning",
        WARNING,
        "gpu0: GPU 0: Xid 13 (graphics engine exception), which means the program, not the GPU",
        GPU0,
    ),
    (
        n.XidsUnwatched("gpu0", "Not Supported"),
        "warning",
        WARNING,
        "gpu0: the driver's Xids are not watched: Not Supported",
        GPU0,
    ),
    (
        n.RefreshAboveBlind("gpu0", 500),
        "warning",
        WARNING,
        "gpu0: --refresh-above 500 has no effect: NVML does not show how much GPU memory each worker holds",
        GPU0,
    ),
    # the template
    (
        n.NotPreloaded("torch", "it leaves a thread"),
        "warning",
        WARNING,
        "not preloaded: torch: it leaves a thread",
        {},
    ),
    (
        n.TemplateRestarts(c.Signalled(9), 2),
        "warning",
        WARNING,
        "the template process was killed by SIGKILL; it may have run out of memory; starting another",
        {"left_behind": 2},
    ),
    # the program
    (n.FilesWatched(1, "/app"), "note", INFO, "watching 1 Python file in /app", {}),
    (
        n.FilesWatched(20_000, "/app", 20_000),
        "note",
        INFO,
        (
            "watching 20,000 Python files in /app; there is more than the 20,000 files and folders that are watched "
            "at most"
        ),
        {},
    ),
    (n.Reloading(), "reload", INFO, "SIGHUP: reloading", {}),
    (n.Reloading(("a.py", "held.py", "c.py")), "reload", INFO, "a.py, held.py, c.py changed: reloading", {}),
    (n.Reloading(tuple("abcde")), "reload", INFO, "a, b, c and 2 more changed: reloading", {}),
    (
        n.TaskFailed(n.Task.WRITE_STORE, "the disk is full"),
        "warning",
        WARNING,
        "the job store cannot be written, trying again: the disk is full",
        {},
    ),
    (n.StoreWritable(), "warning", WARNING, "the job store can be written again", {}),
    (
        n.TaskFailed(n.Task.REMOVE_OLD_JOBS, "the disk is full"),
        "warning",
        WARNING,
        "old jobs could not be removed: the disk is full",
        {},
    ),
    (n.TaskFailed(n.Task.REMOVE_ENDED_SECRET, "no"), "warning", WARNING, "a job has ended, and no", {}),
    (n.TaskFailed(n.Task.REMOVE_SECRET, "no"), "warning", WARNING, "no", {}),
    # webhooks
    (
        n.TaskFailed(n.Task.DELIVER_WEBHOOKS, "no threads"),
        "warning",
        WARNING,
        "webhooks wait, trying again: no threads",
        {},
    ),
    (
        n.WebhookGivenUp("a", "http://x:1", 3, "500"),
        "warning",
        WARNING,
        "webhook of job a to http://x:1 given up after 3 tries: 500",
        {},
    ),
    (
        n.WebhookGivenUp("a", "http://x:1", 1, "500"),
        "warning",
        WARNING,
        "webhook of job a to http://x:1 given up after 1 try: 500",
        {},
    ),
    (n.WebhooksLost(1), "warning", WARNING, "1 webhook was not delivered", {}),
    (n.WebhooksLost(2), "warning", WARNING, "2 webhooks were not delivered", {}),
]
