"""Dependencies that the engine's parts share; in the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from supervisor.config.settings import Settings
from supervisor.engine.job_logs import JobLogs
from supervisor.engine.jobs import Jobs
from supervisor.engine.statistics import Statistics
from supervisor.engine.streams import Streams
from supervisor.engine.turns import Clock, Turns
from supervisor.job import Job
from supervisor.pool import events
from supervisor.pool.interfaces import Pool
from supervisor.store.secrets import SecretFiles
from supervisor.store.store import Store


class Shared(msgspec.Struct, frozen=True):
    """One engine's dependencies. ``job_ended``, ``webhook_waits`` and ``notify`` are called after the commit; ``notify`` also at
    once, for events outside of turns. ``status_body`` makes the body of `/status` for a job."""

    settings: Settings
    store: Store
    secrets: SecretFiles
    pool: Pool
    loop: asyncio.AbstractEventLoop
    clock: Clock
    turns: Turns
    jobs: Jobs
    streams: Streams
    logs: JobLogs
    statistics: Statistics
    job_ended: Callable[[Job], None]
    webhook_waits: Callable[[], None]
    notify: Callable[[events.PoolEvent], None]
    status_body: Callable[[Job], bytes]
