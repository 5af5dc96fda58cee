"""The job with a number, by what the product itself reads."""

from __future__ import annotations

from supervisor.job import Job
from supervisor.store.store import Store


def numbered(store: Store, seq: int) -> Job | None:
    """The job number ``seq``, whole."""
    page = store.page(seq + 1, seq, None, 1)
    return store.get(page[0].id) if page else None
