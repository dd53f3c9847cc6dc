"""Drains the rings of all page events: one for each CPU, in memory that the BPF programs and we share.

The other half is collect/bpf/page_rings.c: a program takes a place by moving `head`, and writes the time stamp last. We
read up to the first place without one, put zeros there again, and move `limit` on.
"""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

from collect.records import PAGE_EVENT

__all__ = ["EVENTS_PER_CHUNK", "SLACK", "PageRings", "is_sampled", "ring_chunks", "sampled_below"]

EVENTS_PER_CHUNK = 2048
"""As in collect/bpf/page_rings.c: a map's value may hold 4 MB at most (KMALLOC_MAX_SIZE), so a ring is many of them."""

SLACK = 1024
"""Places kept free behind `limit`, for those that passed the check of it together: interrupts nested on a CPU, and tasks
that were preempted between the check and the taking of a place (7.x)."""

RING_BYTES = 64 << 20
MAX_CHUNKS = 512

POSITION = np.dtype([("head", "u8"), ("limit", "u8"), ("sample", "u8"), ("n_lost", "u8"), ("pad", "u8", 12)])

EVERY_BLOCK = 1 << 32
BLOCK_SHIFT, BLOCK_FACTOR = np.uint64(9), np.uint64(2654435769)
"""A page block's hash; see is_sampled() in collect/bpf/page_rings.c."""


def ring_chunks(n_cpus: int, ring_bytes: int = RING_BYTES) -> int:
    """Chunks of each CPU's ring, a power of two: about `ring_bytes` for all CPUs together."""
    chunk_bytes = EVENTS_PER_CHUNK * PAGE_EVENT.itemsize
    wanted = min(max(ring_bytes // (n_cpus * chunk_bytes), 1), MAX_CHUNKS)
    return 1 << (wanted.bit_length() - 1)


def sampled_below(sample: int) -> int:
    """The hash below which a page block is recorded, for one block in `sample`; 0: none, 1: all."""
    return EVERY_BLOCK // sample if sample else 0


def is_sampled(pfns: npt.NDArray[np.uint64], sample: int) -> npt.NDArray[np.bool_]:
    """Which pages are in a block that is recorded, for one block in `sample`."""
    hashes = (pfns >> BLOCK_SHIFT) * BLOCK_FACTOR & np.uint64(EVERY_BLOCK - 1)
    return hashes < np.uint64(sampled_below(sample))


class PageRings:
    """The rings of all CPUs. Silent until `start`.

    Args:
        chunks_fd, positions_fd: file descriptors of the maps `page_chunks` and `page_positions`.
        n_cpus, n_chunks: their sizes.
    """

    def __init__(self, chunks_fd: int, positions_fd: int, n_cpus: int, n_chunks: int) -> None:
        self._n_events = n_chunks * EVENTS_PER_CHUNK
        self.size = n_cpus * self._n_events * PAGE_EVENT.itemsize
        self._events = np.frombuffer(_map(chunks_fd, self.size), PAGE_EVENT, n_cpus * self._n_events)
        self._events = self._events.reshape(n_cpus, self._n_events)
        self._positions = np.frombuffer(_map(positions_fd, n_cpus * POSITION.itemsize), POSITION, n_cpus)
        self._read = np.zeros(n_cpus, np.int64)

    def start(self, sample: int) -> None:
        """Let the programs record, one page block in `sample` (0: none)."""
        self.set_sample(sample)
        for cpu in range(len(self._read)):
            self._give_room(cpu)

    def set_sample(self, sample: int) -> None:
        """From now on record one page block in `sample`; 0: none, 1: all."""
        self._positions["sample"] = sampled_below(sample)

    @property
    def used(self) -> float:
        """How full the fullest ring is, 0 to 1."""
        waiting = self._positions["head"].astype(np.int64) - self._read
        return float(waiting.max()) / self._n_events

    @property
    def n_lost(self) -> int:
        """Events that found their ring full."""
        return int(self._positions["n_lost"].sum())

    def drain(self) -> npt.NDArray[np.void]:
        """Every event that is whole, CPU by CPU, each in the order in which places were taken; a copy of its own."""
        parts = [np.empty(0, PAGE_EVENT)]
        for cpu, head in enumerate(self._positions["head"].tolist()):
            read = int(self._read[cpu])
            while read < head:
                at = read % self._n_events
                part = self._events[cpu, at : at + min(head - read, self._n_events - at)]
                ts = part["ts"].copy()  # read once: what is whole now is taken, what becomes so meanwhile waits
                n = int((ts == 0).argmax()) if not ts.all() else len(ts)
                if n:
                    parts.append(part[:n].copy())
                    part["ts"][:n] = 0
                    read += n
                if n < len(ts):
                    break
            if read != self._read[cpu]:
                self._read[cpu] = read
                self._give_room(cpu)
        return np.concatenate(parts)

    def _give_room(self, cpu: int) -> None:
        self._positions["limit"][cpu] = self._read[cpu] + self._n_events - SLACK


def _map(fd: int, n_bytes: int) -> mmap.mmap:
    length = -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
