"""Runs jobs: calls the handler, processes what it returns by its type, and reports the result; in the worker's main thread.

The returned value decides, not the handler's signature: a plain function may return a coroutine or a generator.

====================== ==========================================================================================
the handler returned   it is
====================== ==========================================================================================
an awaitable           awaited in a task of its own, so that other jobs can run concurrently; its result is processed in turn
an async iterator      read in a task of its own, each value a chunk
a generator            read at once, each value a chunk
anything else          the result
====================== ==========================================================================================
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from typing import Any

import msgspec

import supervisor
from supervisor.cause import NotEncodable, ResultFault, TooLarge
from supervisor.errors import EncodeError
from supervisor.job import JobStatus
from supervisor.wire import messages as wire
from supervisor.worker import blame, cuda, output
from supervisor.worker.channel import SupervisorPipe
from supervisor.worker.encode import encode, error_text
from supervisor.worker.load import Config

_PLAIN = frozenset({dict, list, tuple, str, int, float, bool, type(None)})  # a result without further checks
_KINDS: tuple[tuple[str, Callable[[object], bool]], ...] = (
    ("coroutine", inspect.iscoroutinefunction),
    ("async_generator", inspect.isasyncgenfunction),
    ("generator", inspect.isgeneratorfunction),
    ("function", inspect.isroutine),
)
_NOTHING = object()  # no output: the handler returned an object with nothing but error or refresh_worker
_decode_fast: Callable[[bytes], Any] = msgspec.json.Decoder().decode


def _decode(text: bytes) -> Any:
    """Decode the JSON ``text``."""
    try:
        return _decode_fast(text)
    except msgspec.DecodeError:
        return json.loads(text)  # accepts numbers of any length, and 1e400 as infinity, as RunPod's worker does


def kind_of(handler: Callable[..., Any]) -> str:
    """Return the kind of ``handler``, as in ``wire.Ready``, as far as it is known without calling it."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if inspect.isclass(handler) or inspect.isbuiltin(handler):
        return "unknown"
    function = handler if inspect.isroutine(handler) else type(handler).__call__
    return next((kind for kind, is_it in _KINDS if is_it(function)), "unknown")


class _Attempt:
    """One running job. ``chunks`` counts what it yielded; ``kept`` holds those values if they are to form the output."""

    __slots__ = ("cancelled", "chunks", "entered", "id", "kept", "task")

    def __init__(self, job: str) -> None:
        self.id = job
        self.task: asyncio.Task[None] | None = None
        self.entered = False
        self.cancelled = False
        self.chunks = 0
        self.kept: list[bytes] = []


class Runner:
    """Runs the jobs of one worker. Everything happens in the main thread, inside the running loop."""

    def __init__(self, config: Config, pipe: SupervisorPipe, worker_id: str, max_result: int) -> None:
        """Run ``config.handler`` and report through ``pipe``; ``worker_id`` is for error reports. ``max_result`` is the limit for
        a result or a chunk, bytes."""
        self._max_result = max_result
        self._config = config
        self._pipe = pipe
        self._worker_id = worker_id
        self._running: dict[str, _Attempt] = {}
        self.kind = kind_of(config.handler)
        self._concurrent = self.kind in ("coroutine", "async_generator")
        self.capacity = self._wanted_capacity(1)

    def run(self, message: wire.Run) -> None:
        """Start one job. It has ended on return, unless its handler returned an awaitable or an async iterator."""
        attempt = self._running[message.job] = _Attempt(message.job)
        self._pipe.started(message.job)
        # In a context of its own, like a task, so that context variables that a handler sets do not outlive its job.
        contextvars.copy_context().run(self._call, attempt, message)
        if attempt.task is not None:
            self._update_capacity()

    def cancel(self, job: str) -> None:
        """Raise ``CancelledError`` in the coroutine of ``job``. Ignored if the job does not run."""
        attempt = self._running.get(job)
        if attempt is not None:
            attempt.cancelled = True
            # A task that is cancelled before its first step never runs, and could not report its end.
            if attempt.task is not None and attempt.entered:
                attempt.task.cancel()

    def _call(self, attempt: _Attempt, message: wire.Run) -> None:
        output.JOB.set(message.job)
        try:
            job = {"id": message.job, "input": _decode(message.input)}
            if message.extras is not None:
                job.update(_decode(message.extras))
            value = self._config.handler(job)
            if type(value) in _PLAIN:
                done = self._result(attempt, value)
            elif isinstance(value, AsyncIterator) or inspect.isawaitable(value):
                self._concurrent = True
                attempt.task = asyncio.get_running_loop().create_task(self._follow(attempt, value))
                return
            else:
                done = self._settle(attempt, value)
        except SystemExit as ended:
            output.exit_as(ended)
        except BaseException as error:  # noqa: BLE001 - user code ran
            done = self._failure(attempt, error)
        self._finish(done)

    async def _follow(self, attempt: _Attempt, value: Any) -> None:
        attempt.entered = True
        try:
            if attempt.cancelled:
                _discard(value)
                raise asyncio.CancelledError
            while inspect.isawaitable(value):
                value = await value
            done = (
                await self._read_async(attempt, value)
                if isinstance(value, AsyncIterator)
                else self._settle(attempt, value)
            )
        except SystemExit as ended:
            output.exit_as(ended)
        except BaseException as error:  # noqa: BLE001 - user code ran
            done = self._failure(attempt, error)
        self._finish(done)

    def _settle(self, attempt: _Attempt, value: Any) -> wire.Done:
        return self._read(attempt, value) if isinstance(value, Generator) else self._result(attempt, value)

    def _read(self, attempt: _Attempt, values: Generator[Any, Any, Any]) -> wire.Done:
        try:
            for value in values:
                done = self._chunk(attempt, value)
                if done is not None:
                    return done
        finally:
            values.close()
        return self._streamed(attempt)

    async def _read_async(self, attempt: _Attempt, values: AsyncIterator[Any]) -> wire.Done:
        try:
            async for value in values:
                done = self._chunk(attempt, value)
                if done is not None:
                    return done
        finally:
            if isinstance(values, AsyncGenerator):
                await values.aclose()
        return self._streamed(attempt)

    def _chunk(self, attempt: _Attempt, value: Any) -> wire.Done | None:
        """Send a yielded value. If it is an error or cannot be sent, return the job's end."""
        if isinstance(value, dict) and value.get("error"):
            return self._result(attempt, value)
        try:
            chunk = encode(value, f"output[{attempt.chunks}]")
        except EncodeError as failure:
            return self._failed(attempt, NotEncodable(blame.message(failure)))
        if len(chunk) > self._max_result:
            return self._failed(attempt, TooLarge(len(chunk), self._max_result, attempt.chunks))
        self._pipe.send(wire.Chunk(attempt.id, attempt.chunks, chunk))
        attempt.chunks += 1
        if self._config.return_aggregate_stream:
            attempt.kept.append(chunk)
        return None

    def _streamed(self, attempt: _Attempt) -> wire.Done:
        whole = b"[" + b",".join(attempt.kept) + b"]"
        return wire.Done(attempt.id, JobStatus.COMPLETED.value, whole, refresh=self._config.refresh_worker)

    def _result(self, attempt: _Attempt, value: Any) -> wire.Done:
        refresh = self._config.refresh_worker
        error = None
        if isinstance(value, dict):
            refresh = refresh or bool(value.get("refresh_worker"))
            error = value.get("error") or None
            value = {key: item for key, item in value.items() if key not in ("error", "refresh_worker")} or _NOTHING
        try:
            encoded = None if value is _NOTHING else encode(value)
        except EncodeError as failure:
            why = blame.message(failure)
            if error is None:
                return self._failed(attempt, NotEncodable(why), refresh)
            self._pipe.warn(f"job {attempt.id}: the output beside its error is dropped: {why}")
            encoded = None
        if error is not None:
            return self._failed(attempt, error_text(error), refresh, encoded)
        return wire.Done(attempt.id, JobStatus.COMPLETED.value, encoded, refresh=refresh)

    def _failed(
        self,
        attempt: _Attempt,
        error: str | ResultFault,
        refresh: bool = False,
        beside: bytes | None = None,
        cuda_text: str | None = None,
    ) -> wire.Done:
        """Fail a job with the handler's own ``error``, or with the fault of its value. ``cuda_text``, if not all of it, is the
        part to search for CUDA errors."""
        text, fault = (error, None) if isinstance(error, str) else (None, error)
        cuda_text = text or _text_of(fault) if cuda_text is None else cuda_text
        return wire.Done(
            attempt.id,
            JobStatus.FAILED.value,
            beside,
            text,
            refresh or self._config.refresh_worker,
            cuda.poison(cuda_text),
            cuda.out_of_memory(cuda_text),
            fault,
        )

    def _failure(self, attempt: _Attempt, error: BaseException) -> wire.Done:
        """Return the end of a job in which ``error`` was raised."""
        if isinstance(error, asyncio.CancelledError) and attempt.cancelled:
            return wire.Done(attempt.id, JobStatus.CANCELLED.value, refresh=self._config.refresh_worker)
        report = {
            "error_type": str(type(error)),
            "error_message": blame.message(error),
            "error_traceback": blame.users_traceback(error),
            "hostname": socket.gethostname(),
            "worker_id": self._worker_id,
            "supervisor_version": supervisor.__version__,
        }
        # Without the traceback: its file names and source lines may mention CUDA for other reasons.
        return self._failed(attempt, json.dumps(report, ensure_ascii=False), cuda_text=_cuda_text(error))

    def _finish(self, done: wire.Done) -> None:
        text = done.error or _text_of(done.cause)
        length = len(done.output or b"") + len(text.encode("utf-8", "surrogatepass"))
        if length > self._max_result:
            fault = TooLarge(length, self._max_result)
            done = msgspec.structs.replace(done, status=JobStatus.FAILED.value, output=None, error=None, cause=fault)
        output.flush()  # the job's output must be in the log pipe before its end is in the other pipe
        self._running.pop(done.job, None)
        self._pipe.ended(done)
        output.JOB.set(None)
        self._update_capacity()

    def _update_capacity(self) -> None:
        wanted = self._wanted_capacity(self.capacity)
        if wanted != self.capacity:
            self.capacity = wanted
            self._pipe.send(wire.Capacity(wanted))

    def _wanted_capacity(self, current: int) -> int:
        modifier = self._config.concurrency_modifier
        if modifier is None or not self._concurrent:
            return current
        try:
            wanted = max(1, int(modifier(current)))
        except Exception as error:  # noqa: BLE001 - user code
            self._pipe.warn(f"concurrency_modifier raised, so the capacity stays {current}: {blame.one_line(error)}")
            return current
        if wanted > wire.MAX_CAPACITY:
            self._pipe.warn(f"concurrency_modifier requests {wanted} jobs at once; the maximum is {wire.MAX_CAPACITY}")
        return min(wanted, wire.MAX_CAPACITY)


def _text_of(fault: ResultFault | None) -> str:
    """Return the part of ``fault`` that is the value's own text: it may be long, or mention CUDA."""
    return fault.what if isinstance(fault, NotEncodable) else ""


def _cuda_text(error: BaseException | None) -> str:
    """Return the types and messages of ``error`` and of its causes."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        parts.append(f"{type(error).__module__}.{type(error).__name__}: {blame.message(error)}")
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


def _discard(value: Any) -> None:
    """Discard an awaitable without Python's warning that it was never awaited."""
    end = getattr(value, "close", None) or getattr(value, "cancel", None)
    if end is not None:
        end()
