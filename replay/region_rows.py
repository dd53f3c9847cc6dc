"""The rows of a trace's regions as columns, checked, and what rows have to do with one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyze.changes import MAX_TS
from analyze.jit import kernel
from collect.errors import TraceError
from collect.schema import HUGE_FRAME_PAGES, NO_PFN, RegionEvent, RegionKind, Tier
from collect.trace import Trace

__all__ = ["NEVER", "RegionRows", "read_region_rows"]

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NEVER = np.iinfo(np.int64).max
"""Time of a free that the trace does not hold."""

_COLUMNS = [
    "ts_ns", "event", "tier", "kind", "region_id", "parent_id", "pid", "name_id", "stack_id", "address", "n_bytes",
    "map_level", "pfns", "n_pfns_lost",
]  # fmt: skip


@dataclass(frozen=True)
class RegionRows:
    """The table regions.

    Attributes:
        trace: where it comes from.
        column: its columns, but for the page frames.
        ts_ns: times, signed.
        first, pfn: row i has the page frames `pfn[first[i] : first[i + 1]]`, -1 where the recorder could not tell.
        is_alloc: [rows] an allocation, no free.
        free_ns, free_pid: [rows] when and by whom the row's region was freed: `NEVER`, 0 where it was not.
    """

    trace: Trace
    column: dict[str, npt.NDArray[Any]]
    ts_ns: Int64
    first: Int64
    pfn: Int64
    is_alloc: Bools
    free_ns: Int64
    free_pid: Int64

    def with_frames(self) -> Int64:
        """Rows that took page frames, in order of time."""
        has = self.is_alloc & (np.diff(self.first) > 0)
        has &= (self.column["tier"] == Tier.BACKING) | (self.column["kind"] == RegionKind.SECRET_PAGE)
        rows = np.flatnonzero(has)
        return rows[np.argsort(self.ts_ns[rows], kind="stable")]

    def pages(self, rows: Int64) -> tuple[Int64, Int64]:
        """(offsets of the pages of `rows`, [pages] their cells of `pfn`)."""
        counts = np.diff(self.first)[rows]
        first = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        return first, np.repeat(self.first[rows] - first[:-1], counts) + np.arange(first[-1])

    def outermost(self, rows: Int64) -> Int64:
        """Without regions that share a frame with an older one that still lives: parts of a pack or of a ROX block.

        `rows` are in order of time, and so one way through them does: what a part shares frames with in its turn may stay.
        """
        first, page = self.pages(rows)
        frames, frame = np.unique(self.pfn[page], return_inverse=True)
        held_until = np.full(len(frames), np.iinfo(np.int64).min)
        inner = np.zeros(len(rows), np.bool_)
        known = self.pfn[page] >= 0
        _mark_inner(first, frame.reshape(-1), known, self.ts_ns[rows], self.free_ns[rows], held_until, inner)
        return rows[~inner]

    def asked_for(self, rows: Int64) -> Int64:
        """Row of what each request was made for: its parent region, or itself on the asked tier; -1 where unknown."""
        column = self.column
        asked = np.where(column["tier"][rows] == Tier.ASKED, rows, -1)
        allocs = np.flatnonzero(self.is_alloc)
        order = np.argsort(column["region_id"][allocs], kind="stable")
        ids = column["region_id"][allocs][order]
        parent = column["parent_id"][rows]
        if len(ids):
            at = np.minimum(np.searchsorted(ids, parent), len(ids) - 1)
            found = (ids[at] == parent) & (parent != 0) & (asked < 0)
            asked[found] = allocs[order[at[found]]]
        return asked

    def in_old_block(self, rows: Int64) -> Bools:
        """Areas cut from a ROX block that was there before the recording: no request to the page allocator made them.

        Told by their frames: one after the other, and in the place within their 2M frame that the address has in its own,
        as a 2M mapping makes them (pages of vmalloc's own are there by chance once in 512).
        """
        config = self.trace.manifest["kernel"].get("config")
        if not isinstance(config, dict) or config.get("CONFIG_ARCH_HAS_EXECMEM_ROX") != "y":
            return np.zeros(len(rows), np.bool_)
        first, page = self.pages(rows)
        owner = np.repeat(np.arange(len(rows)), np.diff(first))
        nth = np.arange(len(owner)) - first[owner]
        start = self.pfn[self.first[rows]]
        virtual = (self.column["address"][rows] >> np.uint64(12)).astype(np.int64)
        apart = np.bincount(owner, self.pfn[page] != start[owner] + nth, len(rows)) > 0
        congruent: Bools = (virtual - start) % HUGE_FRAME_PAGES == 0
        execmem: Bools = self.column["kind"][rows] == RegionKind.EXECMEM
        return congruent & ~apart & execmem


def read_region_rows(trace: Trace) -> RegionRows:
    """The regions of a trace. Raises TraceError where one names a frame beyond the recorded memory."""
    table = trace.table("regions", _COLUMNS)
    column = {name: table.column(name).to_numpy() for name in _COLUMNS if name != "pfns"}
    if np.any(column["ts_ns"] >= MAX_TS):
        raise TraceError(f"{trace.path}: table 'regions' has a time centuries after boot; copy the trace anew")
    first, pfns = _lists(table.column("pfns"))
    max_pfn = int(trace.manifest["memory"]["max_pfn"])
    known = pfns != np.uint64(NO_PFN)
    if np.any(pfns[known] >= max_pfn):
        raise TraceError(
            f"{trace.path}: table 'regions' names a page frame beyond memory.max_pfn ({max_pfn}); copy the trace anew"
        )
    pfn = np.where(known, pfns, 0).astype(np.int64)
    pfn[~known] = -1
    is_alloc = column["event"] == RegionEvent.ALLOC
    free_ns, free_pid = _frees(column, ~is_alloc)
    return RegionRows(trace, column, column["ts_ns"].astype(np.int64), first, pfn, is_alloc, free_ns, free_pid)


def _lists(column: Any) -> tuple[Int64, npt.NDArray[np.uint64]]:
    """Offsets and values of a list column, whatever its chunks."""
    array = column.combine_chunks()
    if hasattr(array, "chunks"):  # a chunked array of no chunk
        return np.zeros(1, np.int64), np.zeros(0, np.uint64)
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.to_numpy()[offsets[0] : offsets[-1]]
    return offsets - offsets[0], values


def _frees(column: dict[str, Any], is_free: npt.NDArray[np.bool_]) -> tuple[Int64, Int64]:
    """Time and thread of the free of each row's region (`NEVER`, 0 where there is none)."""
    rows = np.flatnonzero(is_free & (column["region_id"] != 0))
    ids, first_row = np.unique(column["region_id"][rows], return_index=True)
    free_ns = np.full(len(column["ts_ns"]), NEVER, np.int64)
    free_pid = np.zeros(len(free_ns), np.int64)
    if len(ids):
        at = np.minimum(np.searchsorted(ids, column["region_id"]), len(ids) - 1)
        found = ids[at] == column["region_id"]
        row = rows[first_row[at]]
        free_ns[found] = column["ts_ns"][row[found]].astype(np.int64)
        free_pid[found] = column["pid"][row[found]]
    return free_ns, free_pid


@kernel
def _mark_inner(
    first: Int64, frame: Int64, known: Bools, ts_ns: Int64, free_ns: Int64, held_until: Int64, inner: Bools
) -> None:
    """Mark the regions that find one of their frames held; the others hold theirs until they are freed."""
    for row in range(len(inner)):
        for i in range(first[row], first[row + 1]):
            if known[i] and ts_ns[row] < held_until[frame[i]]:
                inner[row] = True
        if not inner[row]:
            for i in range(first[row], first[row + 1]):
                if known[i]:
                    held_until[frame[i]] = free_ns[row]
