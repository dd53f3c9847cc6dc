"""The state of a direct map, and the changes that it goes through.

`DirectMap` is the handle for Python; compiled loops take its `entries` and call `analyze.rules.change_range`.

Example::

    m = DirectMap(max_pfn=1 << 20)
    m.load(pfn=[0], level=[3], n_leaves=[4], attrs=[0x8000_0000_0000_0163])
    splits = m.change(pfn=5, n_pages=1, mask_clr=int(Pte.RW))   # 1G -> 2M, 2M -> 4K
    m.counts()                                                  # {1: 512, 2: 511, 3: 3}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analyze.entries import (
    FRAME,
    FRAME_SHIFT,
    GIGA,
    GIGA_SHIFT,
    MAX_ATTRS,
    MAX_SLABS,
    N_SLABS,
    RODATA_END,
    RODATA_FIRST,
    SLABS_FULL,
    SYMBOLIC,
    Entries,
    attr_code,
    new_entries,
)
from analyze.rules import ATTRS_OVERFLOW, LOG_FULL, SplitLog, Window, change_range, new_log, no_window, split_leaf
from analyze.runs import LOADED, OVERLAP, count_runs, load_runs, used_attrs, write_runs
from collect.errors import TraceError
from collect.schema import LEAF_PAGES, Level

__all__ = [
    "ATTRS_OVERFLOW",
    "FRAME",
    "GIGA",
    "LOG_FULL",
    "DirectMap",
    "Entries",
    "Runs",
    "SplitLog",
    "Window",
    "change_range",
    "new_log",
    "no_window",
]

MAX_TB = 16
MAX_PAGES = MAX_TB << 28
"""Of physical address space: what an analysis holds in 1 GB, whatever a manifest from a stranger claims. A direct map can be
larger: 64 TB with 4 levels of page tables, 4 PB with 5 (arch/x86/include/asm/sparsemem.h, MAX_PHYSMEM_BITS).
"""

TOO_LARGE = f" lies past {MAX_TB} TB, the most that is analyzed (in 1 GB of memory); record on a smaller machine"

_LEAF_PAGES = np.array(LEAF_PAGES, np.int64)

_LOADED_AT_ONCE = 1 << 16
"""Rows of a snapshot: what checking them takes beside the map stays small."""

Ints = npt.NDArray[np.int64] | npt.NDArray[np.uint64] | Sequence[int]


class Runs(NamedTuple):
    """Rows of a snapshot in order of page frame: equal arrays of pfn, Level, leaves, attribute bits."""

    pfn: npt.NDArray[np.int64]
    level: npt.NDArray[np.uint8]
    n_leaves: npt.NDArray[np.int64]
    attrs: npt.NDArray[np.uint64]


class DirectMap:
    """A direct map of `max_pfn` pages, empty at first.

    Args:
        max_pfn: pages of physical address space (rounded up to 1G inside).
        rodata: [first, end) page frames that may not become writable.
        n_symbolic: 2M frames behind the real ones whose place in memory is not known; each starts as one 2M leaf.
        symbolic_attrs: Pte bits of those leaves.
    Raises:
        TraceError: more memory than any machine of today can map.

    Attributes:
        entries: the flat arrays, for compiled code.
        first_symbolic: page frame number of the first symbolic frame; also the end of the real ones.
    """

    def __init__(
        self,
        max_pfn: int,
        *,
        rodata: tuple[int, int] | None = None,
        n_symbolic: int = 0,
        symbolic_attrs: int = 0,
    ) -> None:
        if max_pfn + n_symbolic * FRAME > MAX_PAGES:
            raise TraceError(f"memory.max_pfn {max_pfn}{TOO_LARGE}")
        self.max_pfn = max_pfn
        protected = rodata if rodata and rodata[0] < rodata[1] else (0, 0)
        self.entries: Entries = new_entries(max_pfn, n_symbolic, protected)
        self.first_symbolic = int(self.entries.meta[SYMBOLIC])
        if n_symbolic:
            one = np.ones(1, np.int64)
            code = attr_code(self.entries, np.uint64(symbolic_attrs))
            load_runs(
                self.entries, one * self.first_symbolic, np.full(1, Level.M2, np.uint8), one * n_symbolic, one * code
            )

    def load(self, pfn: Ints, level: Ints | npt.NDArray[np.uint8], n_leaves: Ints, attrs: Ints) -> None:
        """Fill holes with the rows of a snapshot. Raises TraceError for rows that cannot be of this map."""
        columns = [np.asarray(column) for column in (pfn, level, n_leaves, attrs)]
        for first in range(0, len(columns[0]), _LOADED_AT_ONCE):
            self._load(first, *(column[first : first + _LOADED_AT_ONCE].astype(np.uint64) for column in columns))
        self.check_room()

    def _load(
        self,
        row: int,
        pfns: npt.NDArray[np.uint64],
        levels: npt.NDArray[np.uint64],
        counts: npt.NDArray[np.uint64],
        words: npt.NDArray[np.uint64],
    ) -> None:
        """Rows from `row` on."""
        bad = _first(~np.isin(levels, (Level.K4, Level.M2, Level.G1)))
        if bad is not None:
            raise TraceError(f"snapshot row {row + bad}: level {levels[bad]} is none of 1, 2, 3; copy the trace anew")
        size = _LEAF_PAGES.astype(np.uint64)[levels]
        end = np.uint64(self.first_symbolic)
        bad = _first(
            (pfns >= end) | (pfns % size != 0) | (counts == 0) | (counts > (end - np.minimum(pfns, end)) // size)
        )
        if bad is not None:
            raise TraceError(
                f"snapshot row {row + bad}: {counts[bad]} leaves of level {levels[bad]} from pfn {pfns[bad]} do not fit "
                f"memory of {self.max_pfn} pages; copy the trace anew"
            )
        values, inverse = np.unique(words, return_inverse=True)
        codes = np.array([attr_code(self.entries, value) for value in values], np.int64)
        if (codes < 0).any():
            raise TraceError(
                f"snapshot: more than {MAX_ATTRS} different attribute words, no kernel does that; copy the trace anew"
            )
        signed = (pfns.astype(np.int64), levels.astype(np.uint8), counts.astype(np.int64))
        met = load_runs(self.entries, *signed, codes[inverse.reshape(-1)])
        if met != LOADED:
            raise TraceError(f"snapshot row {row + met}: {OVERLAP} (pfn {pfns[met]}); copy the trace anew")

    def change(
        self,
        pfn: int,
        n_pages: int,
        *,
        mask_set: int = 0,
        mask_clr: int = 0,
        n_done: int | None = None,
        force_split: bool = False,
        has_pgd: bool = False,
    ) -> list[tuple[int, int]]:
        """One call on pages of this map; returns its splits as (Level that was split, first page of that leaf)."""
        if pfn < 0 or n_pages < 0 or pfn + n_pages > self.n_pages:
            raise TraceError(f"pages {pfn} to {pfn + n_pages - 1} lie outside memory of {self.max_pfn} pages")
        log = new_log(n_pages // FRAME * 2 + n_pages // GIGA + 16)
        masks = np.uint64(mask_set), np.uint64(mask_clr)
        done = n_pages if n_done is None else n_done
        got = change_range(
            self.entries, log, no_window(), 0, 0, 1, pfn, n_pages, done, *masks, bool(force_split), bool(has_pgd)
        )
        raise_failure(got[0])
        return [(int(log.level[i]), int(log.pfn[i])) for i in range(log.n[0])]

    def split(self, pfn: int, level: int) -> bool:
        """Split the leaf of `level` (3 or 2) that maps a page; False where there is none."""
        log = new_log(1)
        raise_failure(split_leaf(self.entries, log, 0, 0, pfn, level))
        return bool(log.n[0])

    def check_room(self) -> None:
        """Raises TraceError where more was split than a map holds; its state is wrong then."""
        if self.entries.meta[SLABS_FULL]:
            raise TraceError(
                f"more than {MAX_SLABS >> 9} GB are in 4K entries, the most that is analyzed (in 1 GB of memory); "
                "record on a smaller machine"
            )

    @property
    def n_pages(self) -> int:
        """Pages that the arrays cover: real ones up to a 1G boundary, and the symbolic ones."""
        return len(self.entries.giga_level) * GIGA

    def counts(self, *, symbolic: bool = False) -> dict[int, int]:
        """Leaf entries by Level, of real frames or of symbolic ones."""
        row = self.entries.counts[int(symbolic)]
        return {level: int(row[level]) for level in (Level.K4, Level.M2, Level.G1)}

    def level_of(self, pfn: Ints) -> npt.NDArray[np.uint8]:
        """Level of the leaf that maps each page, 0 for a hole."""
        return self._lookup(pfn)[0]

    def attrs_of(self, pfn: Ints) -> npt.NDArray[np.uint64]:
        """Pte bits of the leaf that maps each page, 0 for a hole."""
        return self.entries.attrs[self._lookup(pfn)[1]]

    def frame_levels(self) -> npt.NDArray[np.uint8]:
        """Per real 2M frame: 3 inside a 1G leaf, 2 a leaf, 1 split into 4K pages, 0 a hole."""
        m = self.entries
        giga = np.repeat(m.giga_level, GIGA // FRAME)
        return np.where(giga == Level.M2, m.frame_level, giga)[: self.first_symbolic // FRAME]

    def split_frames(self) -> npt.NDArray[np.int64]:
        """Numbers (pfn >> 9) of the real 2M frames that 4K entries map, ascending."""
        return np.flatnonzero(self.frame_levels() == Level.K4)

    def pages_of(self, frames: Ints) -> npt.NDArray[np.uint64]:
        """Pte bits of every page of split 2M frames: shape (len(frames), 512); 0 where there is no entry."""
        m = self.entries
        return m.attrs[m.slabs[m.frame_slab[np.asarray(frames, np.int64)]]]

    def runs(self) -> Runs:
        """The real part as rows of a snapshot."""
        n = count_runs(self.entries, self.first_symbolic)
        out = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.int64), np.empty(n, np.int64)
        write_runs(self.entries, self.first_symbolic, *out)
        return Runs(out[0], out[1], out[2], used_attrs(self.entries)[out[3]])

    def empty_like(self) -> DirectMap:
        """A map of the same memory that holds nothing yet."""
        first, end = self.entries.meta[RODATA_FIRST : RODATA_END + 1].tolist()
        return DirectMap(self.max_pfn, rodata=(first, end))

    def copy(self) -> DirectMap:
        """An independent map of the same state."""
        m = self.entries
        used = int(m.meta[N_SLABS])
        other = object.__new__(DirectMap)
        other.max_pfn, other.first_symbolic = self.max_pfn, self.first_symbolic
        other.entries = new_entries(self.n_pages, 0, (0, 0))
        tables = np.flatnonzero(m.giga_level == Level.M2)
        for name in m._fields:
            ours, theirs = getattr(m, name), getattr(other.entries, name)
            if name in ("frame_level", "frame_code", "frame_slab"):  # elsewhere they say nothing, and take no memory
                theirs.reshape(-1, GIGA // FRAME)[tables] = ours.reshape(-1, GIGA // FRAME)[tables]
                continue
            n = used if name in ("slabs", "free_slabs") else None  # the rest of these was never written: leave it so
            theirs[:n] = ours[:n]
        return other

    def _lookup(self, pfn: Ints) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
        m = self.entries
        pages = np.asarray(pfn, np.int64)
        gigas, frames = pages >> GIGA_SHIFT, pages >> FRAME_SHIFT
        table = m.giga_level[gigas] == Level.M2
        level = np.where(table, m.frame_level[frames], m.giga_level[gigas])
        code = np.where(table, m.frame_code[frames], m.giga_code[gigas])
        split = table & (level == Level.K4)
        code = np.where(split, m.slabs[np.where(split, m.frame_slab[frames], 0), pages & (FRAME - 1)], code)
        return np.where(split & (code == 0), np.uint8(0), level), code


def raise_failure(status: int, where: object = "changes") -> None:
    """Turn the status of `change_range` into a TraceError that names `where`, a trace."""
    if status == ATTRS_OVERFLOW:
        raise TraceError(
            f"{where}: table changes: more than {MAX_ATTRS} different attribute words, no kernel does that; copy the trace anew"
        )
    if status == LOG_FULL:
        raise TraceError(f"{where}: table changes: more splits than the memory has large pages; copy the trace anew")


def _first(bad: npt.NDArray[np.bool_]) -> int | None:
    """Index of the first True, or None."""
    at = int(bad.argmax()) if len(bad) else 0
    return at if len(bad) and bad[at] else None
