"""Single pages of kernel memory that the recorded kernel handed out next, where every page event was recorded.

Whoever had asked for n single pages at some moment would have got those that lay free then and that others got from that
moment on, in this order: the allocator takes pages of one kind from the same lists for all (per CPU, then by order;
mm/page_alloc.c). A page that was freed only after the moment does not count; it would not have been there yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.entries import FRAME, FRAME_SHIFT
from analyze.jit import kernel, signed
from analyze.pages.passes import MAX_ORDER, MAX_SLABS
from collect.schema import HUGE_FRAME_PAGES, PageEvent
from collect.trace import Trace

__all__ = ["MAX_MOMENTS", "NextPages", "every_page_recorded", "next_single_pages"]

Int64 = npt.NDArray[np.int64]

MAX_MOMENTS = 256
"""Moments that are looked at; where there are more, these stand for those around them."""
_COLUMNS = ("ts_ns", "event", "pfn", "order", "migratetype")
_ALLOC, _BULK = int(PageEvent.ALLOC), int(PageEvent.ALLOC_BULK)


_MAX_CELLS = 1 << 22
_HALVES = 6
"""How much further than the pages asked for is looked, in halves of them."""


@dataclass(frozen=True)
class NextPages:
    """For each of some moments the pages that came next, as far as they are known.

    Attributes:
        ns: [moments] ascending.
        pfn: [moments, at_once and more].
        start: [moments, 3] where in `pfn` at_once pages in a row lie in the fewest frames, come first, lie in the most frames.
    """

    ns: Int64
    pfn: Int64
    start: Int64
    at_once: int

    @classmethod
    def of(cls, look: Callable[[Int64, int], Int64], ns: Int64, at_once: int) -> NextPages | None:
        """`look`: as `next_single_pages`. None where no moment is followed by `at_once` pages."""
        n = at_once * (2 + _HALVES) // 2
        moments = np.unique(ns)
        most = max(1, min(MAX_MOMENTS, _MAX_CELLS // n))
        if len(moments) > most:
            moments = moments[np.linspace(0, len(moments) - 1, most).astype(np.int64)]
        pfn = look(moments, n)
        known = np.count_nonzero(pfn >= 0, axis=1)
        enough = known >= at_once
        if not enough.any():
            return None
        moments, pfn, known = moments[enough], pfn[enough], known[enough]
        starts = np.arange(_HALVES + 1) * at_once // 2
        frames = np.full((len(moments), len(starts)), -1, np.int64)
        for row, column in zip(*np.nonzero(starts + at_once <= known[:, None]), strict=True):
            cells = pfn[row, starts[column] : starts[column] + at_once]
            frames[row, column] = len(np.unique(cells // HUGE_FRAME_PAGES))
        fewest = np.where(frames < 0, HUGE_FRAME_PAGES * at_once, frames).argmin(axis=1)
        chosen = np.stack((starts[fewest], np.zeros(len(moments), np.int64), starts[frames.argmax(axis=1)]), axis=1)
        return cls(moments, pfn, chosen, at_once)

    def chosen(self, ns: Int64, spread: int, n: int) -> Int64:
        """As `replay.single_pages.SinglePages.chosen`."""
        row = np.maximum(np.searchsorted(self.ns, ns, side="right") - 1, 0)
        nth = np.arange(n) * self.at_once // n
        found: Int64 = self.pfn[row[:, None], self.start[row, 1 + spread][:, None] + nth]
        return found


def every_page_recorded(trace: Trace) -> bool:
    """Whether all page events were to be recorded from beginning to end, and no page left out."""
    sampling = trace.manifest["sampling"]
    return sampling.get("pages") == "all" and sampling.get("page_sample", 1) == 1 and not sampling.get("steps")


def next_single_pages(trace: Trace, moments: Int64, n: int) -> Int64:
    """[moments, n] page frames that lay free at each of `moments` and were handed out from then on, in this order.

    Only allocations of single UNMOVABLE pages count. A row ends with -1 where there were no more of them in the recording.
    `moments`: at most `MAX_MOMENTS`, ascending. Memory: 4 KiB for each 2M frame that page events touch, 512 MB at most.
    Raises TraceError.
    """
    if len(moments) > MAX_MOMENTS:
        raise ValueError(f"{len(moments)} moments, more than {MAX_MOMENTS}")
    n_frames = -(-int(trace.manifest["memory"]["max_pfn"]) // HUGE_FRAME_PAGES)
    slab = np.zeros(n_frames, np.int32)
    touched = np.zeros((min(n_frames, MAX_SLABS), FRAME), np.int64)
    found = np.full((len(moments), n), -1, np.int64)
    state = np.zeros(3, np.int64)  # slabs given out, first moment that wants more, moments begun
    count = np.zeros(len(moments), np.int64)
    for part in trace.batches("pages", _COLUMNS, 1):
        ts_ns, event, pfn, order, migratetype = (part[name].combine_chunks().to_numpy() for name in _COLUMNS)
        _look(ts_ns, event, pfn, order, migratetype, moments, slab, touched, found, count, state)
        if state[1] == len(moments):
            break
    return found


@kernel
def _look(
    ts_ns: npt.NDArray[np.uint64],
    event: npt.NDArray[np.uint8],
    pfn: npt.NDArray[np.uint64],
    order: npt.NDArray[np.uint8],
    migratetype: npt.NDArray[np.uint8],
    moments: Int64,
    slab: npt.NDArray[np.int32],
    touched: Int64,
    found: Int64,
    count: Int64,
    state: Int64,
) -> None:
    """Go through a part of the page events. `touched`: when anything last happened to a page, 0: nothing yet."""
    end = len(slab) << FRAME_SHIFT
    for row in range(len(ts_ns)):
        now = signed(ts_ns[row])
        while state[2] < len(moments) and moments[state[2]] <= now:
            state[2] += 1
        while state[1] < len(moments) and count[state[1]] == found.shape[1]:
            state[1] += 1
        if state[1] == len(moments):
            return
        first, n_order = signed(pfn[row]), signed(order[row])
        if n_order > MAX_ORDER or first < 0 or first > end - (1 << n_order):
            continue
        what = signed(event[row])
        single = n_order == 0 and migratetype[row] == 0 and what in (_ALLOC, _BULK)
        for page in range(first, first + (1 << n_order)):
            frame = page >> FRAME_SHIFT
            if slab[frame] == 0:
                if state[0] == len(touched):
                    continue
                state[0] += 1
                slab[frame] = state[0]
            at, i = signed(slab[frame]) - 1, page & (FRAME - 1)
            before = touched[at, i]
            touched[at, i] = now
            if single:
                for moment in range(state[2] - 1, state[1] - 1, -1):
                    if before >= moments[moment]:  # something happened to it since, so since all moments before, too
                        break
                    if count[moment] < found.shape[1]:
                        found[moment, count[moment]] = page
                        count[moment] += 1
