"""Shutdown of a run: what ends first counts, and a cancellation is never lost."""

from __future__ import annotations

import asyncio

import pytest

from supervisor.cli.serving.shutdown import Shutdown


@pytest.mark.parametrize("turns", range(8))
def test_a_cancellation_takes_effect_at_any_moment(turns: int) -> None:
    """Also while what has not ended is being cancelled itself."""

    async def cancel() -> None:
        shutdown = Shutdown(asyncio.get_running_loop())
        work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        first = asyncio.ensure_future(shutdown.first(work, shutdown.stop))
        await asyncio.sleep(0)
        work.set_result(1)
        for _ in range(turns):
            await asyncio.sleep(0)
        asked = first.cancel()
        await asyncio.wait({first}, timeout=30)
        assert first.cancelled() is asked

    asyncio.run(cancel())


def test_what_ends_first_counts_and_the_rest_is_cancelled() -> None:
    async def end() -> None:
        shutdown = Shutdown(asyncio.get_running_loop())
        endless: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(shutdown.stop.set)
        assert await shutdown.first(endless, shutdown.stop) is None
        assert endless.cancelled()
        assert await shutdown.first(asyncio.sleep(0, "done"), asyncio.Event()) == "done"
        with pytest.raises(ZeroDivisionError):
            await shutdown.first(fails(), asyncio.Event())

    async def fails() -> None:
        raise ZeroDivisionError

    asyncio.run(end())
