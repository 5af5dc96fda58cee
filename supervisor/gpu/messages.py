"""What the supervisor and the reader process say to each other, over a stream socket framed as ``wire`` frames."""

from __future__ import annotations

from typing import Union

import msgspec

from supervisor.gpu.records import Listing, Reading, Unwatched, WorkerRef, Xid

LIMIT = 16 << 20
"""Most bytes of one message: thousands of processes on dozens of GPUs take a fraction of it."""


class List(msgspec.Struct, frozen=True, tag="list"):
    """Which GPUs are there? Answered by a ``Listing``."""


class Sample(msgspec.Struct, frozen=True, tag="sample"):
    """Read every GPU. Answered by a ``Reading`` of the same number; ``workers`` holds the worker in each slot."""

    number: int
    workers: dict[str, WorkerRef]


ToReader = Union[List, Sample]
Answer = Union[Listing, Reading]
FromReader = Union[Answer, Xid, Unwatched]
"""The answers, in the order of the questions; and between them, unasked, what the driver reports."""
