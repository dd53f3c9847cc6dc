"""2M frames that were never wholly free, where every page event was recorded: no block of 2 MiB can have come from there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analyze.entries import FRAME, FRAME_SHIFT
from analyze.jit import kernel, signed
from analyze.losses import Doubt, lost_for
from analyze.pages.passes import MAX_ORDER, MAX_SLABS
from collect.schema import HUGE_FRAME_PAGES, PageEvent
from collect.trace import Trace
from replay.next_pages import every_page_recorded

__all__ = ["never_free"]

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_COLUMNS = ("event", "pfn", "order")
_FREE, _SPLIT = int(PageEvent.FREE), int(PageEvent.SPLIT)
_FREED, _ALLOCATED = 1, 2
"""What is known of a page; 0: nothing happened to it yet."""
_SINCE_START, _NOW, _LEAST = range(3)


def never_free(trace: Trace) -> Bools:
    """[2M frames of memory] at every moment of the recording some page of the frame was allocated.

    That is proved by page events: a page whose first event is its free was allocated before, another from its allocation to its
    free. Of a page without any event nothing is known. False for all where events were lost, sampled or out of sight.
    Memory: 512 bytes for each frame that page events touch, 64 MB at most. Raises TraceError.
    """
    n_frames = -(-int(trace.manifest["memory"]["max_pfn"]) // HUGE_FRAME_PAGES)
    if not _all_seen(trace):
        return np.zeros(n_frames, np.bool_)
    slab = np.zeros(n_frames, np.int32)
    known = np.zeros((min(n_frames, MAX_SLABS), FRAME), np.uint8)
    counts = np.zeros((min(n_frames, MAX_SLABS), 3), np.int64)
    n_slabs = np.zeros(1, np.int64)
    for part in trace.batches("pages", _COLUMNS, 1):
        event, pfn, order = (part[name].combine_chunks().to_numpy() for name in _COLUMNS)
        _count(event, pfn, order, slab, known, counts, n_slabs)
    least = counts[:, _SINCE_START] + counts[:, _LEAST]
    return (slab > 0) & (least[np.maximum(slab - 1, 0)] > 0)


def _all_seen(trace: Trace) -> bool:
    """Whether no allocation and no free of the recording is missing."""
    manifest = trace.manifest
    missing = manifest["probes"].get("missing")
    probes = [probe for probe in missing if isinstance(probe, dict)] if isinstance(missing, list) else []
    unseen = any("alloc" in str(probe.get("name")) for probe in probes)
    return every_page_recorded(trace) and not unseen and lost_for(manifest["losses"], Doubt.PAGES) == 0


@kernel
def _count(
    event: npt.NDArray[np.uint8],
    pfn: npt.NDArray[np.uint64],
    order: npt.NDArray[np.uint8],
    slab: npt.NDArray[np.int32],
    known: npt.NDArray[np.uint8],
    counts: Int64,
    n_slabs: Int64,
) -> None:
    """Go through a part of the page events. `counts`: of each slab, pages allocated before their first event; pages
    allocated now beyond those; the least of that number so far."""
    end = len(slab) << FRAME_SHIFT
    for row in range(len(event)):
        first, n_order = signed(pfn[row]), signed(order[row])
        if event[row] == _SPLIT or n_order > MAX_ORDER or first < 0 or first > end - (1 << n_order):
            continue
        frees = event[row] == _FREE
        for page in range(first, first + (1 << n_order)):
            frame = page >> FRAME_SHIFT
            if slab[frame] == 0:
                if n_slabs[0] == len(known):
                    continue
                n_slabs[0] += 1
                slab[frame] = n_slabs[0]
            at, i = signed(slab[frame]) - 1, page & (FRAME - 1)
            was = known[at, i]
            if frees:
                if was == 0:
                    counts[at, _SINCE_START] += 1
                if was != _FREED:
                    counts[at, _NOW] -= 1
                    counts[at, _LEAST] = min(counts[at, _LEAST], counts[at, _NOW])
                known[at, i] = _FREED
            else:
                if was != _ALLOCATED:
                    counts[at, _NOW] += 1
                known[at, i] = _ALLOCATED
