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

LEAST_WINDOW = 32
"""Jobs that ``map`` keeps under way, or four times what the workers can run if that is more."""

_encode = msgspec.json.Encoder().encode


class Supervisor:
    """Workers for a handler, as ``supervise HANDLER`` has them, and a queue; see docs/python.md."""

    def __init__(self, handler: str, **options: Any) -> None:
        """Serve ``handler``; ``options`` are those of the command line, as ``gpus="auto"`` or ``refresh_worker=True``.

        Without ``store`` the queue ends with this supervisor. ``start`` starts it, and so does a ``with`` block.

        Raises:
            UsageError: an option is unknown or wrong.
        """
        self.settings = settings = make_settings(handler, **options)
        unnamed = settings.store == Path(".supervise", f"{settings.endpoint_id}.db").absolute()
        self._thread = EngineThread(settings, temporary=unnamed and options.get("store") is None)

    def start(self) -> Supervisor:
        """Start the workers and wait until one is ready.

        Raises:
            HandlerError, StartError: no worker could load the handler, with the handler's own traceback.
            UsageError: a GPU or the store cannot be had.
        """
        self._thread.start()
        return self

    def close(self, *, drain: bool = True) -> None:
        """End the workers and all they started. ``drain`` waits for every job that was submitted; without it those that have
        not ended are cancelled, or stay in the ``store`` that was given for the next supervisor to run. May be called twice."""
        self._thread.close(drain=drain)

    def __enter__(self) -> Supervisor:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """As ``close``; an exception, such as Ctrl-C, waits for no job."""
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
        """Queue a job and return at once. ``input`` is what JSON can say (dataclasses and dates as msgspec writes them).

        The same ``id`` twice is the same job. What cannot be checked here, such as a full queue, is raised by ``result``.

        Raises:
            TypeError: ``input`` cannot be written as JSON.
            RequestError: an option is wrong.
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
        """The outputs of a job for each of ``inputs``, in their order, or as they come with ``as_completed``.

        ``inputs`` may be endless: it is read no further than ``buffersize`` jobs ahead of what was taken here, and not before the
        first is asked for. The first job that did not complete raises, as its ``result``; those still queued are cancelled then,
        and so when the iterator is closed.
        """
        size = buffersize
        if size is None:
            size = max(LEAST_WINDOW, 4 * self._thread.call(_capacity))
        if size < 1:
            raise ValueError(f"buffersize must be at least 1, not {size}")
        return self._map(iter(inputs), size, as_completed)

    def workers(self) -> tuple[WorkerView, ...]:
        """The slots and the workers in them, as `/workers` shows them."""
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
