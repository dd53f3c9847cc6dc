"""Holes in the direct map, and how a call that brings its page directory fills them.

Only changes of the encryption bit bring one (sm: __set_memory_enc_dec, from 6.1 on __set_memory_enc_pgtable; cpa.pgd).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyze.entries import FRAME, FRAME_SHIFT, GIGA, GIGA_SHIFT, SYMBOLIC, Entries, clear_frame, open_slab
from analyze.jit import kernel
from collect.schema import Level

if TYPE_CHECKING:
    from analyze.rules import Window

__all__ = ["fill", "pages_to_hole"]

K4, M2, G1 = int(Level.K4), int(Level.M2), int(Level.G1)


@kernel
def pages_to_hole(m: Entries, page: int, n: int) -> int:
    """Pages from `page`, of a split frame, up to the first hole; at most `n`."""
    slab = m.frame_slab[page >> FRAME_SHIFT]
    start = page & (FRAME - 1)
    for i in range(start, start + n):
        if m.slabs[slab, i] == 0:
            return i - start
    return n


@kernel
def fill(m: Entries, window: Window, entry_ns: int, exit_ns: int, page: int, end: int, code: int) -> int:
    """Map pages [page, end) anew with the attributes of `code`, whatever was there (sm: populate_pgd and those below).

    Not only the hole that was met: the kernel hands the rest of the call down and looks at no entry. In the largest
    pieces that are aligned; static protections are not asked. Left out is what the kernel would do to a leaf that reaches
    beyond the piece: it takes it for a table. Frames outside `window` are passed over. Returns the entries written.
    """
    side = 1 if page >= m.meta[SYMBOLIC] else 0
    per_giga = GIGA >> FRAME_SHIFT
    n_written = 0
    while page < end:
        giga, frame = page >> GIGA_SHIFT, page >> FRAME_SHIFT
        stop = min(end, (frame + 1) << FRAME_SHIFT)
        whole = page & (GIGA - 1) == 0 and end - page >= GIGA
        if whole:
            stop = page + GIGA
        if len(window.lo) > 0 and (exit_ns <= window.lo[frame] or entry_ns >= window.hi[frame]):
            page = stop
            continue
        if whole:
            if m.giga_level[giga] == M2:
                for other in range(giga * per_giga, (giga + 1) * per_giga):
                    clear_frame(m, other)
            if m.giga_level[giga] != G1:
                m.counts[side, G1] += 1
            m.giga_level[giga] = G1
            m.giga_code[giga] = code
            n_written += 1
        elif m.giga_level[giga] != G1:
            m.giga_level[giga] = M2
            if stop - page == FRAME:
                clear_frame(m, frame)
                m.frame_level[frame] = M2
                m.frame_code[frame] = code
                m.counts[side, M2] += 1
                n_written += 1
            elif m.frame_level[frame] != M2:
                if m.frame_level[frame] == 0:
                    open_slab(m, frame, 0)
                slab = m.frame_slab[frame]
                for i in range(page & (FRAME - 1), (page & (FRAME - 1)) + stop - page):
                    if m.slabs[slab, i] == 0:
                        m.counts[side, K4] += 1
                    m.slabs[slab, i] = code
                    n_written += 1
        page = stop
    return n_written
