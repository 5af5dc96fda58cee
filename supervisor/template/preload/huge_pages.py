"""Large pages for the memory that workers share, which make forks and exits faster; runs in the template process.

A fork copies the page table, and an exit releases every page: after ``import torch`` that is 37,000 pages, 4 ms for the fork and
5 ms for the exit. With pages of 2 MiB it takes a third and half of that. A worker that writes still copies 4 KiB: the kernel
splits the page first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

LARGE = 2**21
"""Bytes of a large page on x86-64 and, with pages of 4 KiB, on arm64."""

WORTH = 16
"""Minimum number of large pages that is worth the effort."""

_COLLAPSE = 25  # MADV_COLLAPSE of madvise(2), since Linux 6.1
_SMALL = 4096
_FULL = LARGE // _SMALL * 3 // 4
"""Minimum number of resident small pages in a large one; with fewer, memory would grow too much."""

_ENTRY = 8  # bytes of an entry of /proc/PID/pagemap (proc(5)); the highest bit of the last one: the page is resident
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def collapse() -> int:
    """Collapse the dense parts of this process's private memory into large pages; return how many, 0 without system support.

    Takes 3 ms per MiB, once, before the first fork: workers forked earlier would keep the small pages.
    """
    if os.sysconf("SC_PAGESIZE") != _SMALL or not _allowed():
        return 0
    count = 0
    with contextlib.suppress(OSError):  # only an optimisation; the kernel may lack it
        found = list(_dense())
        if sum(end - begin for begin, end in found) >= WORTH * LARGE:
            madvise = ctypes.CDLL(None).madvise
            madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            for begin, end in found:
                if madvise(begin, end - begin, _COLLAPSE) == 0:
                    count += (end - begin) // LARGE
    return count


def _allowed() -> bool:
    try:
        return "[never]" not in _SETTING.read_text()
    except OSError:
        return False


def _dense() -> Iterator[tuple[int, int]]:
    """Yield address ranges of large pages whose small pages are mostly resident."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for begin, end in _private():
            first, last = -(-begin // LARGE), end // LARGE
            dense = groupby(range(first, last), lambda page: _is_dense(pagemap.fileno(), page))
            for pages in [list(group) for is_dense, group in dense if is_dense]:
                yield pages[0] * LARGE, (pages[-1] + 1) * LARGE


def _is_dense(pagemap: int, page: int) -> bool:
    entries = os.pread(pagemap, LARGE // _SMALL * _ENTRY, page * (LARGE // _SMALL) * _ENTRY)
    return sum(byte >> 7 for byte in entries[_ENTRY - 1 :: _ENTRY]) >= _FULL


def _private() -> Iterator[tuple[int, int]]:
    """Yield the heap and anonymous mappings, from lines ``ADDRESSES PERMISSIONS OFFSET DEVICE INODE [NAME]``."""
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        addresses, permissions, _, _, _, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and name in ([], ["[heap]"]):
            begin, end = addresses.split("-")
            yield int(begin, 16), int(end, 16)
