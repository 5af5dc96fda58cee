"""The ``Supervisor`` of Python programs: jobs in, futures out; used in the user's threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import msgspec

from supervisor.config.resolve import make_settings
from supervisor.embed.job import JobFuture
from supervisor.embed.runtime import EngineThread
from supervisor.engine.engine import Engine
from supervisor.job import JobRequest
from supervisor.protocol.requests import job_request, new_id
from supervisor.protocol.views import WorkerView

MIN_WINDOW = 32
"""Minimum number of jobs that ``map`` keeps under way; it keeps four times the workers' capacity if that is more."""

_encode = msgspec.json.Encoder().encode


class Supervisor:
    """A queue and workers for a handler, as with ``supervise HANDLER``; see docs/python.md."""

    def __init__(self, handler: str, **options: Any) -> None:
        """Configure a supervisor for ``handler``; ``start`` or a ``with`` block starts it.

        ``options`` are those of the command line, such as ``gpus="auto"`` or ``refresh_worker=True``. Without ``store`` the queue
        is deleted when the supervisor closes.

        Raises:
            UsageError: an option is unknown or invalid.
        """
        self.settings = settings = make_settings(handler, **options)
        unnamed = settings.store == Path(".supervise", f"{settings.endpoint_id}.db").absolute()
        self._thread = EngineThread(settings, temporary=unnamed and options.get("store") is None)

    def start(self) -> Supervisor:
        """Start the workers and wait until one is ready.

        Raises:
            HandlerError, StartError: no worker could load the handler, with the handler's own traceback.
            UsageError: a GPU or the store is not available.
        """
        self._thread.start()
        return self

    def close(self, *, drain: bool = True) -> None:
        """Stop the workers and their child processes. May be called twice.

        ``drain`` waits for all submitted jobs to end; without it those left are cancelled, or stay in the given ``store`` for the
        next supervisor to run.
        """
        self._thread.close(drain=drain)

    def __enter__(self) -> Supervisor:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close the supervisor; after an exception, such as Ctrl-C, without draining."""
        self.close(drain=kind is None)

    def submit(
        self,
        input: Any,  # noqa: A002 - the name in a request
        *,
        webhook: str | None = None,
        policy: dict[str, Any] | None = None,
        s3Config: dict[str, Any] | None = None,  # noqa: N803 - the name in a request
        id: str | None = None,  # noqa: A002 - the name in a request
    ) -> JobFuture:
        """Queue a job and return at once. ``input`` is anything msgspec can encode as JSON, dataclasses and dates included.

        The same ``id`` twice is the same job. Later errors, such as a full queue, are raised by ``result``.

        Raises:
            TypeError: ``input`` cannot be encoded as JSON.
            RequestError: an option is invalid.
            RuntimeError: the supervisor is not running.
        """
        if webhook is None and policy is None and s3Config is None and id is None:
            request = JobRequest(new_id(), _encode(input), generated=True)
        else:
            options = {"webhook": webhook, "policy": policy, "s3Config": s3Config, "id": id}
            request = job_request(_encode({"input": input, **options}))
        job = JobFuture(request.id, self._thread)
        self._thread.submit(request, job)
        return job

    def map(self, inputs: Iterable[Any], *, as_completed: bool = False, buffersize: int | None = None) -> Iterator[Any]:
        """Run a job for each of ``inputs``; yield their outputs in order, or as jobs end with ``as_completed``.

        ``inputs`` may be endless: it is read lazily, at most ``buffersize`` jobs ahead of the outputs consumed. The first job
        that did not complete raises as its ``result`` does. Jobs still queued are cancelled then, or when the iterator is closed.
        """
        size = buffersize
        if size is None:
            size = max(MIN_WINDOW, 4 * self._thread.call(_capacity))
        if size < 1:
            raise ValueError(f"buffersize must be at least 1, not {size}")
        return self._map(iter(inputs), size, as_completed)

    def workers(self) -> tuple[WorkerView, ...]:
        """Return the slots and the workers in them, as `/workers` shows them."""
        return self._thread.call(lambda engine: engine.snapshot().workers)

    def refresh(self, slot: str) -> None:
        """Replace the worker in ``slot``, after the jobs that it runs.

        Raises:
            RequestError: there is no such slot, or no worker in it to replace now.
        """
        self._thread.refresh(slot)

    def _map(self, inputs: Iterator[Any], size: int, as_completed: bool) -> Iterator[Any]:
        ended: SimpleQueue[Any] = SimpleQueue()
        ahead: dict[JobFuture, None] = {}  # in the order of their inputs

        def feed(number: int) -> None:
            for job in map(self.submit, itertools.islice(inputs, number)):
                ahead[job] = None
                if as_completed:
                    job.add_done_callback(ended.put)

        try:
            feed(size)
            while ahead:
                first = ended.get() if as_completed else next(iter(ahead))
                del ahead[first]
                output = first.result()
                feed(1)
                yield output
        finally:
            self._thread.withdraw(ahead)


def _capacity(engine: Engine) -> int:
    return sum(slot.capacity for slot in engine.pool.slots.values())
