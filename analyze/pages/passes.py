"""One pass over page events: what each 4 KiB page is allocated as, and since when, in memory that does not grow with time.

A page that was touched has a cell, in the slab of its 2M frame: 0 nothing was seen of it, FREE it was freed, else the
class of its allocation and when that was. A class is what allocations have in common (event, order, gfp, migratetype,
scope). Cells are of pages, not of allocations, so that it does not matter in which parts an allocation is freed: split_page
and the split of a huge page free it page by page.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analyze.entries import FRAME, FRAME_SHIFT
from analyze.jit import kernel, signed
from collect.schema import PageEvent

__all__ = [
    "ALL_PAGES",
    "GOOD",
    "MAX_CLASSES",
    "MAX_ORDER",
    "MAX_SLABS",
    "N_BINS",
    "N_DECADES",
    "TIME_BITS",
    "PageState",
    "follow",
    "new_state",
    "tally",
]

MAX_ORDER = 10
"""MAX_PAGE_ORDER of x86-64 (include/linux/mmzone.h)."""
MAX_SLABS = 1 << 17
"""2M frames that are followed: 512 MB of cells. What is touched beyond is counted, but has no lifetimes."""
MAX_CLASSES = 1 << 12
N_BINS = 240
"""Intervals into which a recording is cut."""
N_DECADES = 16
"""Of lifetimes: under 10 ns, under 100 ns, ...; the last one holds all from 10^15 ns on."""
ALL_PAGES = 1 << 32
"""`below` where every block of pages was recorded (collect/page_ring.py)."""
GOOD = -1
"""`follow` took every row."""

_FREE = 1
TIME_BITS = 50
"""Of a cell, for the time: 13 days in nanoseconds; longer recordings are kept in coarser units."""
_LIVE = 1 << TIME_BITS
"""A cell from here on is of an allocated page: (class + 1) << TIME_BITS | time of the allocation."""
_MAX_TIME = (1 << TIME_BITS) - 1
_HASH_SIZE = 1 << 14
_HASH_FACTOR = np.uint64(0x9E37_79B9_7F4A_7C15)  # Fibonacci hashing (Knuth, TAOCP 3, 6.4)
_HASH_SHIFT = np.uint64(64 - 14)
_BLOCK_FACTOR = 2654435769  # is_sampled() in collect/bpf/page_rings.c
_AHEAD = 64

_ALLOC, _EV_FREE, _BULK, _SPLIT, _CONTIG = (int(event) for event in PageEvent)

# Columns of PageState.classes
ALLOCATIONS, PAGES, FREED, REPLACED, LIVE = range(5)
# Columns of PageState.bins
BIN_ALLOCATIONS, BIN_FREES, BIN_PAGES, BIN_FREED_PAGES = range(4)
# Rows of PageState.orders
ORDER_ALLOCATIONS, ORDER_FREES, ORDER_SPLITS, UNKNOWN_FREES, TWICE_FREED, TWICE_ALLOCATED = range(6)
# Cells of PageState.totals
N_CLASSES, N_SLABS, OUTSIDE, FAILED, BACKWARDS, NOT_FOLLOWED, OUT_OF_SAMPLE, LAST_TS, TOUCHED = range(9)


class PageState(NamedTuple):
    """What a pass has found so far. Arrays throughout, so that compiled code can change them."""

    slab: npt.NDArray[np.int32]  # per 2M frame: 0 untouched, -1 not followed, else 1 + its slab
    cells: npt.NDArray[np.int64]  # [slab, page within the frame]
    events: npt.NDArray[np.int64]  # per slab: events that sampling chose by their block
    keys: npt.NDArray[np.int64]  # per class: what its allocations have in common; [0]: of what came after MAX_CLASSES
    table: npt.NDArray[np.int32]  # hash table over keys, 0 = empty
    classes: npt.NDArray[np.int64]  # [class, ALLOCATIONS...]
    lives: npt.NDArray[np.int64]  # [class, decade]: pages that were freed at that age
    ages: npt.NDArray[np.int64]  # [class, decade]: pages still allocated at the end, of that age
    bins: npt.NDArray[np.int64]  # [interval, BIN_ALLOCATIONS...]
    orders: npt.NDArray[np.int64]  # [ORDER_ALLOCATIONS..., order]
    totals: npt.NDArray[np.int64]  # N_CLASSES...


def new_state(n_pages: int) -> PageState:
    """For memory of `n_pages` pages, before anything was seen. Takes memory as frames are touched."""
    n_frames = -(-n_pages // FRAME)
    n_slabs = min(n_frames, MAX_SLABS)
    state = PageState(
        slab=np.zeros(n_frames, np.int32),
        cells=np.zeros((n_slabs, FRAME), np.int64),
        events=np.zeros(n_slabs, np.int64),
        keys=np.zeros(MAX_CLASSES, np.int64),
        table=np.zeros(_HASH_SIZE, np.int32),
        classes=np.zeros((MAX_CLASSES, 5), np.int64),
        lives=np.zeros((MAX_CLASSES, N_DECADES), np.int64),
        ages=np.zeros((MAX_CLASSES, N_DECADES), np.int64),
        bins=np.zeros((N_BINS, 4), np.int64),
        orders=np.zeros((6, MAX_ORDER + 1), np.int64),
        totals=np.zeros(9, np.int64),
    )
    state.totals[N_CLASSES] = 1
    return state


@kernel
def _decade(ns: int) -> int:
    """0 for less than 10 ns, 1 for less than 100 ns, ..."""
    at, limit = 0, 10
    while ns >= limit and at < N_DECADES - 1:
        limit *= 10
        at += 1
    return at


@kernel
def _class_of(s: PageState, key: int) -> int:
    """Number of a class, given out on first use; 0 when there is none left."""
    at = signed((np.uint64(key) * _HASH_FACTOR) >> _HASH_SHIFT)
    while s.table[at] != 0:
        if s.keys[s.table[at]] == key:
            return signed(s.table[at])
        at = (at + 1) & (_HASH_SIZE - 1)
    new = s.totals[N_CLASSES]
    if new >= MAX_CLASSES:
        return 0
    s.totals[N_CLASSES] = new + 1
    s.keys[new] = key
    s.table[at] = new
    return new  # type: ignore[no-any-return]


@kernel
def _slab_of(s: PageState, frame: int) -> int:
    """The slab of a frame, given out on first use; -1 when there is none left."""
    slab = signed(s.slab[frame])
    if slab == 0:
        slab = s.totals[N_SLABS] + 1
        if slab > len(s.cells):
            slab = -1
        else:
            s.totals[N_SLABS] = slab
        s.slab[frame] = slab
    return slab - 1 if slab > 0 else -1


@kernel
def _end(s: PageState, cell: int, n_pages: int, since: int, shift: int, freed: bool) -> None:
    """Pages of one allocation are allocated no longer: freed, or allocated anew though no free was seen."""
    kind = (cell >> TIME_BITS) - 1
    if freed:
        s.classes[kind, FREED] += n_pages
        s.lives[kind, _decade(max(since - (cell & _MAX_TIME), 0) << shift)] += n_pages
    else:
        s.classes[kind, REPLACED] += n_pages


@kernel
def follow(
    s: PageState,
    start_ns: int,
    shift: int,
    bin_ns: int,
    end: int,
    below: int,
    ts_ns: npt.NDArray[np.uint64],
    event: npt.NDArray[np.uint8],
    pfn: npt.NDArray[np.uint64],
    order: npt.NDArray[np.uint8],
    gfp: npt.NDArray[np.uint32],
    migratetype: npt.NDArray[np.uint8],
    scope: npt.NDArray[np.uint8],
    region_id: npt.NDArray[np.uint64],
) -> int:
    """Take the rows of a part of the table `pages`, in their order. GOOD, or the first row with a code that the format does not know.

    Args:
        start_ns: time of the start; what comes before counts as then.
        shift: times are kept in units of 2^shift ns.
        bin_ns: length of an interval.
        end: pages of memory.
        below: hash below which a block of pages is taken; ALL_PAGES takes all. Pages of regions are taken always.
        region_id: may be empty where `below` is ALL_PAGES.
    """
    n = len(ts_ns)
    last = s.totals[LAST_TS]
    touched = 0
    for row in range(n):
        if row & (_AHEAD - 1) == 0:  # loads that wait for nothing: the next cells come from memory side by side
            for ahead in range(row + _AHEAD, min(row + 2 * _AHEAD, n)):
                page = signed(pfn[ahead])
                if 0 <= page < end and s.slab[page >> FRAME_SHIFT] > 0:
                    touched ^= s.cells[s.slab[page >> FRAME_SHIFT] - 1, page & (FRAME - 1)]
        what, n_order = signed(event[row]), signed(order[row])
        if what > _CONTIG or n_order > MAX_ORDER:
            return row
        now = signed(ts_ns[row])
        if now < last:
            s.totals[BACKWARDS] += 1
        else:
            last = now
        first, n_pages = signed(pfn[row]), 1 << n_order
        if first < 0 or first > end - n_pages:
            s.totals[FAILED if first < 0 else OUTSIDE] += 1
            continue
        in_region = scope[row] != 0
        if below < ALL_PAGES:
            in_region = in_region or region_id[row] != 0
            if not in_region and ((first >> FRAME_SHIFT) * _BLOCK_FACTOR) & 0xFFFF_FFFF >= below:
                s.totals[OUT_OF_SAMPLE] += 1
                continue
        since = max(now - start_ns, 0)
        at = min(since // bin_ns, N_BINS - 1)
        since = min(since >> shift, _MAX_TIME)
        if what == _SPLIT:
            s.orders[ORDER_SPLITS, n_order] += 1
            continue
        frees = what == _EV_FREE
        kind = 0
        if frees:
            s.orders[ORDER_FREES, n_order] += 1
            s.bins[at, BIN_FREES] += 1
            s.bins[at, BIN_FREED_PAGES] += n_pages
        else:
            s.orders[ORDER_ALLOCATIONS, n_order] += 1
            s.bins[at, BIN_ALLOCATIONS] += 1
            s.bins[at, BIN_PAGES] += n_pages
            key = signed(gfp[row]) | signed(migratetype[row]) << 32 | n_order << 40 | what << 44
            key |= signed(scope[row]) << 48
            if in_region:
                key |= 1 << 56
            kind = _class_of(s, key)
            s.classes[kind, ALLOCATIONS] += 1
            s.classes[kind, PAGES] += n_pages
        new = _FREE if frees else ((kind + 1) << TIME_BITS) + since
        page, stop = first, first + n_pages
        while page < stop:
            to = min(stop, (page | (FRAME - 1)) + 1)
            slab = _slab_of(s, page >> FRAME_SHIFT)
            if slab < 0:
                s.totals[NOT_FOLLOWED] += 1
                page = to
                continue
            if page == first:
                if not in_region:
                    s.events[slab] += 1
                old = s.cells[slab, page & (FRAME - 1)]
                if frees:
                    if old == 0:
                        s.orders[UNKNOWN_FREES, n_order] += 1
                    elif old == _FREE:
                        s.orders[TWICE_FREED, n_order] += 1
                elif old >= _LIVE:
                    s.orders[TWICE_ALLOCATED, n_order] += 1
            run, run_of = 0, 0  # pages in a row that were allocated together
            for i in range(page & (FRAME - 1), (page & (FRAME - 1)) + to - page):
                old = s.cells[slab, i]
                s.cells[slab, i] = new
                if old != run_of:
                    if run_of >= _LIVE:
                        _end(s, run_of, run, since, shift, frees)
                    run, run_of = 0, old
                run += 1
            if run_of >= _LIVE:
                _end(s, run_of, run, since, shift, frees)
            page = to
    s.totals[LAST_TS] = last
    s.totals[TOUCHED] ^= touched  # so that the loads above are not optimised away
    return GOOD


@kernel
def tally(
    s: PageState,
    end_ns: int,
    shift: int,
    live: npt.NDArray[np.int32],
    unmovable: npt.NDArray[np.int32],
    special: npt.NDArray[np.int32],
) -> None:
    """What is allocated after the last row: by class and age, and per 2M frame.

    Args:
        end_ns: time of the end since the start, in ns.
        live, unmovable, special: to be filled per frame: pages allocated, of them unmovable ones, and those of regions.
    """
    for frame in range(len(s.slab)):
        if s.slab[frame] <= 0:
            continue
        slab = signed(s.slab[frame]) - 1
        for i in range(FRAME):
            cell = s.cells[slab, i]
            if cell < _LIVE:
                continue
            kind = (cell >> TIME_BITS) - 1
            s.classes[kind, LIVE] += 1
            s.ages[kind, _decade(max(end_ns - ((cell & _MAX_TIME) << shift), 0))] += 1
            live[frame] += 1
            if (s.keys[kind] >> 32) & 0xFF == 0 and (s.keys[kind] >> 44) & 0xF != _CONTIG and kind > 0:
                unmovable[frame] += 1
            if (s.keys[kind] >> 56) & 1 != 0:
                special[frame] += 1
