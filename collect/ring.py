"""Drains BPF ring buffers in bulk: maps the ring's pages and reads them as one strided numpy array.

The layout (kernel/bpf/ringbuf.c): a page with the consumer's position, a page with the producer's, then the data, mapped
twice in a row so that no record is ever cut. Each record has an 8-byte header, whose first word holds the length, a
busy bit (reserved by some CPU, not yet written) and a discard bit.
"""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

from collect.errors import HostError

__all__ = ["Ring"]

HEADER_BYTES = 8
BUSY, DISCARD = 1 << 31, 1 << 30
LENGTH = DISCARD - 1


class Ring:
    """One ring whose records all have the layout `dtype`.

    Args:
        fd: file descriptor of the map.
        n_pages: its size in pages, a power of two.
        dtype: of one record, without the header.
    """

    def __init__(self, fd: int, n_pages: int, dtype: np.dtype[np.void]) -> None:
        page = mmap.PAGESIZE
        size = n_pages * page
        self._consumer_map = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_map = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = np.frombuffer(self._consumer_map, np.uint64, 1)
        self._producer = np.frombuffer(self._producer_map, np.uint64, 1)
        self._data = np.frombuffer(self._producer_map, np.uint8, 2 * size, offset=page)
        self._mask = size - 1
        self._dtype = dtype
        self._stride = -(-(dtype.itemsize + HEADER_BYTES) // 8) * 8
        self.size = size

    @property
    def used(self) -> int:
        """Bytes that wait to be drained."""
        return int(self._producer[0] - self._consumer[0])

    def drain(self) -> npt.NDArray[np.void]:
        """Everything that is whole, as a copy of its own; possibly empty.

        Stops at the first record that is still being written: the next drain begins there. Headers are read before
        data, which on x86 keeps that order.
        """
        consumed = int(self._consumer[0])
        n = (int(self._producer[0]) - consumed) // self._stride
        if n <= 0:
            return np.empty(0, self._dtype)
        start = consumed & self._mask
        rows = self._data[start : start + n * self._stride].reshape(n, self._stride)
        headers = rows[:, :4].copy().view(np.uint32)[:, 0]
        busy = np.flatnonzero(headers & np.uint32(BUSY))
        if len(busy):
            n = int(busy[0])
            rows, headers = rows[:n], headers[:n]
        if np.any(headers & np.uint32(LENGTH) != self._dtype.itemsize):
            raise HostError(
                "a ring buffer holds a record of another length than its layout; this is a bug in directmap"
            )
        kept = rows[headers & np.uint32(DISCARD) == 0, HEADER_BYTES : HEADER_BYTES + self._dtype.itemsize]
        records = np.ascontiguousarray(kept).view(self._dtype).reshape(-1)
        if records.base is not None and np.shares_memory(records, self._data):
            records = records.copy()
        self._consumer[0] = consumed + n * self._stride
        return records
