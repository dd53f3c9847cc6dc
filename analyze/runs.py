"""Leaf entries to and from runs: the rows of a snapshot.

A run is `n_leaves` neighbouring leaves of one level and one attribute word, from page frame `pfn` on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analyze.entries import FRAME, FRAME_SHIFT, GIGA, GIGA_SHIFT, N_ATTRS, SYMBOLIC, Entries, open_slab
from analyze.jit import kernel, signed
from collect.schema import Level

__all__ = ["LOADED", "OVERLAP", "count_runs", "load_runs", "write_runs"]

K4, M2, G1 = int(Level.K4), int(Level.M2), int(Level.G1)

LOADED = -1
"""`load_runs` took every row."""
OVERLAP = "two entries for one page"


@kernel
def load_runs(
    m: Entries,
    pfn: npt.NDArray[np.int64],
    level: npt.NDArray[np.uint8],
    n_leaves: npt.NDArray[np.int64],
    code: npt.NDArray[np.int64],
) -> int:
    """Fill holes of a map with runs that are aligned and within it. LOADED, or the first row that meets another."""
    for row in range(len(pfn)):
        first = pfn[row]
        side = 1 if first >= m.meta[SYMBOLIC] else 0
        m.counts[side, level[row]] += n_leaves[row]
        if level[row] == G1:
            for giga in range(first >> GIGA_SHIFT, (first >> GIGA_SHIFT) + n_leaves[row]):
                if m.giga_level[giga] != 0:
                    return row
                m.giga_level[giga] = G1
                m.giga_code[giga] = code[row]
        elif level[row] == M2:
            for frame in range(first >> FRAME_SHIFT, (first >> FRAME_SHIFT) + n_leaves[row]):
                giga = frame >> (GIGA_SHIFT - FRAME_SHIFT)
                if m.giga_level[giga] == G1 or m.frame_level[frame] != 0:
                    return row
                m.giga_level[giga] = M2
                m.frame_level[frame] = M2
                m.frame_code[frame] = code[row]
        else:
            end = first + n_leaves[row]
            page = first
            while page < end:
                frame = page >> FRAME_SHIFT
                giga = page >> GIGA_SHIFT
                if m.giga_level[giga] == G1 or m.frame_level[frame] == M2:
                    return row
                m.giga_level[giga] = M2
                if m.frame_level[frame] == 0:
                    open_slab(m, frame, 0)
                slab = m.frame_slab[frame]
                for i in range(page & (FRAME - 1), min(FRAME, (page & (FRAME - 1)) + end - page)):
                    if m.slabs[slab, i] != 0:
                        return row
                    m.slabs[slab, i] = code[row]
                page = (frame + 1) << FRAME_SHIFT
    return LOADED


@kernel
def _next_run(m: Entries, page: int, end: int) -> tuple[int, int, int, int]:
    """The run that starts at or after `page`: (pfn, level, n_leaves, code); level 0 at the end of the map."""
    run_pfn, run_level, run_n, run_code = page, 0, 0, 0
    while page < end:
        giga = page >> GIGA_SHIFT
        frame = page >> FRAME_SHIFT
        level = signed(m.giga_level[giga])
        code = signed(m.giga_code[giga])
        size = GIGA
        if level == M2:
            level = signed(m.frame_level[frame])
            code = signed(m.frame_code[frame])
            size = FRAME
            if level == K4:
                code = signed(m.slabs[m.frame_slab[frame], page & (FRAME - 1)])
                size = 1
                if code == 0:
                    level = 0
        if level == 0:
            if run_level != 0:
                break
            page += size
            continue
        if run_level == 0:
            run_pfn, run_level, run_code = page, level, code
        elif level != run_level or code != run_code:
            break
        run_n += 1
        page += size
    return run_pfn, run_level, run_n, run_code


@kernel
def count_runs(m: Entries, end: int) -> int:
    """How many runs the pages below `end` make."""
    n, page = 0, 0
    while True:
        pfn, level, n_leaves, _ = _next_run(m, page, end)
        if level == 0:
            return n
        n += 1
        page = pfn + n_leaves * (1 if level == K4 else FRAME if level == M2 else GIGA)


@kernel
def write_runs(
    m: Entries,
    end: int,
    pfns: npt.NDArray[np.int64],
    levels: npt.NDArray[np.uint8],
    n_leaves: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int64],
) -> None:
    """Fill arrays of `count_runs` cells with the runs, in order of page frame."""
    page = 0
    for row in range(len(pfns)):
        pfn, level, n, code = _next_run(m, page, end)
        pfns[row], levels[row], n_leaves[row], codes[row] = pfn, level, n, code
        page = pfn + n * (1 if level == K4 else FRAME if level == M2 else GIGA)


def used_attrs(m: Entries) -> npt.NDArray[np.uint64]:
    """Attribute word of each code given out so far; [0] stands for a hole."""
    return m.attrs[: int(m.meta[N_ATTRS])]
