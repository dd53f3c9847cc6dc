"""Memory that comes and goes: entries that hotplug writes and clears, past the choke point.

arch_add_memory picks the sizes of the entries in code that cannot be probed (arch/x86/mm/init_64.c,
phys_pud_init and phys_pmd_init): it uses the largest that is aligned, up to the larger level of those that were seen at
the first and the last page.
That is the state until the range has been read again (snapshots of the moment HOTPLUG, `Reread`), which then holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.changes import MAX_WORK
from analyze.directmap import DirectMap, Runs
from analyze.entries import (
    FRAME,
    FRAME_SHIFT,
    GIGA,
    GIGA_SHIFT,
    N_FREE_SLABS,
    SYMBOLIC,
    Entries,
    attr_code,
    open_slab,
    split_frame,
    split_giga,
)
from analyze.jit import kernel
from analyze.snapshots import SnapshotTable
from collect.errors import TraceError
from collect.schema import LEAF_PAGES, Level, Moment, Space
from collect.trace import Trace

__all__ = ["Reread", "add_range", "read_again", "remove_range"]

MAX_READINGS = 1 << 14
"""Of ranges where memory came or went: 2 TB in blocks of 128 MB, the smallest that the kernel adds."""

K4, M2, G1 = int(Level.K4), int(Level.M2), int(Level.G1)


@dataclass
class Reread:
    """What one reading found of pages where memory had come or gone: rows of a snapshot, holes among them (level 0)."""

    ts_ns: int
    runs: Runs
    n_pages: int
    where: str

    def put_into(self, state: DirectMap) -> None:
        """Make it the state of these pages, whatever that was. Raises TraceError for rows that overlap."""
        sizes = np.maximum(np.array(LEAF_PAGES, np.int64)[self.runs.level], 1)
        _remove_ranges(state.entries, self.runs.pfn, self.runs.n_leaves * sizes)
        mapped = self.runs.level > 0
        try:
            pfn, level, n_leaves, attrs = self.runs
            state.load(pfn[mapped], level[mapped], n_leaves[mapped], attrs[mapped])
        except TraceError as error:
            raise TraceError(f"{self.where}: {error}") from None


def read_again(trace: Trace, table: SnapshotTable) -> list[Reread]:
    """Every reading of a range where memory came or went, in order of time. Raises TraceError for rows outside memory."""
    mine = (table.column("moment") == Moment.HOTPLUG) & (table.column("space") == Space.DIRECT_MAP)
    if not mine.any():
        return []
    where = f"{trace.path}: snapshot HOTPLUG"
    end = -(-trace.manifest["memory"]["max_pfn"] // GIGA) * GIGA
    pfn, level, n = (table.column(name)[mine] for name in ("pfn", "level", "n_leaves"))
    bad = (level > max(Level)) | (pfn >= end) | (n > end)
    if not bad.any():
        size = np.maximum(np.array(LEAF_PAGES, np.uint64)[level], np.uint64(1))
        bad = pfn + n * size > np.uint64(end)
    if bad.any():
        raise TraceError(f"{where}: row {int(bad.argmax())} does not fit memory; copy the trace anew")
    ts, attrs = table.column("ts_ns")[mine].astype(np.int64), table.column("attrs")[mine]
    order = np.argsort(ts, kind="stable")
    cuts = np.flatnonzero(np.diff(ts[order])) + 1
    n_pages = int((n * size).astype(np.float64).sum())
    if len(cuts) >= MAX_READINGS or n_pages > MAX_WORK:
        raise TraceError(
            f"{where}: {len(cuts) + 1} readings of {n_pages} pages in all, no recording comes near that; "
            "the trace is forged or damaged: copy it anew"
        )
    parts = []
    for at in np.split(order, cuts) if len(order) else []:
        runs = Runs(pfn[at].astype(np.int64), level[at].astype(np.uint8), n[at].astype(np.int64), attrs[at])
        parts.append(Reread(int(ts[at[0]]), runs, int((n[at] * size[at]).sum()), where))
    return parts


@kernel
def add_range(m: Entries, pfn: int, n_pages: int, level: int, attrs: np.uint64) -> int:
    """Fill the holes among pages [pfn, pfn + n_pages) (init_64.c: phys_pud_init). 0, or no attribute code left (< 0)."""
    if level == 0:
        return 0
    code = attr_code(m, attrs)
    if code < 0:
        return -1
    side = 1 if pfn >= m.meta[SYMBOLIC] else 0
    page, end = pfn, pfn + n_pages
    while page < end:
        giga, frame = page >> GIGA_SHIFT, page >> FRAME_SHIFT
        if m.giga_level[giga] == G1:
            page = (giga + 1) << GIGA_SHIFT
            continue
        if m.giga_level[giga] == 0:
            if level == G1 and page & (GIGA - 1) == 0 and end - page >= GIGA:
                m.giga_level[giga] = G1
                m.giga_code[giga] = code
                m.counts[side, G1] += 1
                page += GIGA
                continue
            m.giga_level[giga] = M2
        if m.frame_level[frame] == M2:
            page = (frame + 1) << FRAME_SHIFT
            continue
        if m.frame_level[frame] == 0:
            if level >= M2 and page & (FRAME - 1) == 0 and end - page >= FRAME:
                m.frame_level[frame] = M2
                m.frame_code[frame] = code
                m.counts[side, M2] += 1
                page += FRAME
                continue
            open_slab(m, frame, 0)
        slab = m.frame_slab[frame]
        if m.slabs[slab, page & (FRAME - 1)] == 0:
            m.slabs[slab, page & (FRAME - 1)] = code
            m.counts[side, K4] += 1
        page += 1
    return 0


@kernel
def _remove_ranges(m: Entries, pfns: npt.NDArray[np.int64], n_pages: npt.NDArray[np.int64]) -> None:
    for i in range(len(pfns)):
        remove_range(m, pfns[i], n_pages[i])


@kernel
def remove_range(m: Entries, pfn: int, n_pages: int) -> None:
    """Make holes of pages [pfn, pfn + n_pages) (init_64.c: remove_pagetable), splitting leaves that reach beyond.

    A table that is left without entries goes, too (init_64.c: free_pte_table, free_pmd_table).
    """
    side = 1 if pfn >= m.meta[SYMBOLIC] else 0
    page, end = pfn, pfn + n_pages
    while page < end:
        giga, frame = page >> GIGA_SHIFT, page >> FRAME_SHIFT
        if m.giga_level[giga] == 0:
            page = (giga + 1) << GIGA_SHIFT
        elif m.giga_level[giga] == G1:
            if page & (GIGA - 1) == 0 and end - page >= GIGA:
                m.giga_level[giga] = 0
                m.giga_code[giga] = 0
                m.counts[side, G1] -= 1
                page += GIGA
            else:
                split_giga(m, giga)
        elif m.frame_level[frame] == 0:
            page = (frame + 1) << FRAME_SHIFT
        elif m.frame_level[frame] == M2:
            if page & (FRAME - 1) == 0 and end - page >= FRAME:
                m.frame_level[frame] = 0
                m.frame_code[frame] = 0
                m.counts[side, M2] -= 1
                page += FRAME
            else:
                split_frame(m, frame, False)
        else:
            slab = m.frame_slab[frame]
            stop = min(end, (frame + 1) << FRAME_SHIFT)
            for i in range(page & (FRAME - 1), stop - (frame << FRAME_SHIFT)):
                if m.slabs[slab, i] != 0:
                    m.counts[side, K4] -= 1
                m.slabs[slab, i] = 0
            if not m.slabs[slab].any():
                m.frame_level[frame] = 0
                m.frame_slab[frame] = -1
                m.free_slabs[m.meta[N_FREE_SLABS]] = slab
                m.meta[N_FREE_SLABS] += 1
            page = stop
    for giga in range(pfn >> GIGA_SHIFT, ((end - 1) >> GIGA_SHIFT) + 1):
        first = giga << (GIGA_SHIFT - FRAME_SHIFT)
        if m.giga_level[giga] == M2 and not m.frame_level[first : first + (GIGA >> FRAME_SHIFT)].any():
            m.giga_level[giga] = 0
