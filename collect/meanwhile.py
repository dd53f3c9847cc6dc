"""Changes that happened while a snapshot was read, as `snapshot.still` asks for them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from collect.kernel import Kernel
from collect.records import ARRAY, CHANGE, CHUNK
from collect.schema import ChangeKind, Cpa
from collect.snapshot import Touched

__all__ = ["Meanwhile"]

Records = npt.NDArray[np.void]


class Meanwhile:
    """Gathers what is drained from now on.

    Args:
        kernel: for the place of the direct map and of `struct page`.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._first = np.uint64(kernel.page_offset)
        self._memory = kernel.memory
        self._vmemmap = np.uint64(kernel.vmemmap)
        self._changes: list[Records] = [np.empty(0, CHANGE)]
        self._chunks: list[Records] = [np.empty(0, ARRAY)]

    def add(self, drained: dict[str, Records]) -> None:
        """Take note of one draining."""
        self._changes.append(drained["change_ring"])
        self._chunks.append(drained["array_ring"])

    def add_chunks(self, chunks: Records) -> None:
        """Take note of chunks of pages arrays drained before: they are older than their call, which may run now."""
        self._chunks.append(chunks)

    def touched(self) -> Touched:
        """Every change of the direct map so far, page by page where pages arrays list them."""
        changes, chunks = np.concatenate(self._changes), np.concatenate(self._chunks)
        listed = changes["flags"] & np.uint32(Cpa.PAGES_ARRAY) != 0
        pfn = (changes["address"] - self._first) >> np.uint64(12)
        # Memory may have come since: the rows that say so are among these.
        came = (
            pfn[changes["kind"] == ChangeKind.HOTPLUG_ADD]
            + changes["n_pages"][changes["kind"] == ChangeKind.HOTPLUG_ADD]
        )
        n_pages = max([self._memory["max_pfn"], *came.tolist()])
        direct = ~listed & (changes["address"] >= self._first) & (pfn < np.uint64(n_pages))
        parts = [(changes["ts"][direct], changes["end"][direct], pfn[direct], changes["n_pages"][direct])]
        for call in changes[listed]:  # few: a call for many pages
            mine = chunks[chunks["call_id"] == call["call_id"]]
            left = np.maximum(int(call["n_pages"]) - mine["chunk"].astype(np.int64) * CHUNK, 0)
            pages = mine["page"][np.arange(CHUNK)[None, :] < left[:, None]]
            n = len(pages)
            frames = (pages - self._vmemmap) >> np.uint64(6)
            parts.append((np.full(n, call["ts"]), np.full(n, call["end"]), frames, np.ones(n, np.uint64)))
        return Touched(*(np.concatenate(column) for column in zip(*parts, strict=True)))
