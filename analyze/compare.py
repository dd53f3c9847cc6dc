"""Two maps held against each other, page by page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.directmap import FRAME, GIGA, DirectMap
from analyze.entries import Entries, entry_at
from analyze.jit import kernel, signed
from collect.schema import ATTRS_HARDWARE, Level, Pte

__all__ = ["MAX_LISTED", "Difference", "compare"]

MAX_LISTED = 1000
"""Runs of unexplained pages that are kept for people to read; all are counted."""

_HARDWARE = np.uint64(ATTRS_HARDWARE)
_P = np.uint64(int(Pte.P))
M2, G1 = int(Level.M2), int(Level.G1)

_PAGES, _LEVEL, _ATTRS, _HARDWARE_ONLY, _KFENCE, _LISTED = range(6)


@dataclass
class Difference:
    """What `compare` found; pages are 4 KiB pages mapped in either map.

    Attributes:
        hardware_only: pages that differ in accessed or dirty alone: no difference, but counted.
        kfence: pages of KFENCE's pool, whose present bit is not compared.
        listed: the first MAX_LISTED runs of different pages: columns pfn, n_pages, level and attrs in `a`, in `b`.
    """

    pages: int
    level: int
    attributes: int
    hardware_only: int
    kfence: int
    listed: npt.NDArray[np.uint64]


def compare(a: DirectMap, b: DirectMap, kfence_pool: tuple[int, int] | None = None) -> Difference:
    """Compare two maps of the same memory. Levels always; attributes without accessed and dirty."""
    totals = np.zeros(6, np.int64)
    listed = np.zeros((MAX_LISTED, 6), np.uint64)
    first, end = kfence_pool or (0, 0)
    _compare(a.entries, b.entries, min(a.first_symbolic, b.first_symbolic), first, end, totals, listed)
    return Difference(
        pages=int(totals[_PAGES]),
        level=int(totals[_LEVEL]),
        attributes=int(totals[_ATTRS]),
        hardware_only=int(totals[_HARDWARE_ONLY]),
        kfence=int(totals[_KFENCE]),
        listed=listed[: totals[_LISTED]],
    )


@kernel
def _compare(
    a: Entries,
    b: Entries,
    n_pages: int,
    kfence_first: int,
    kfence_end: int,
    totals: npt.NDArray[np.int64],
    listed: npt.NDArray[np.uint64],
) -> None:
    page = 0
    while page < n_pages:
        size = 1
        if page % FRAME == 0 and not (page < kfence_end and page + FRAME > kfence_first):
            giga, frame = page // GIGA, page // FRAME
            whole = page % GIGA == 0 and not (page < kfence_end and page + GIGA > kfence_first)
            if whole and a.giga_level[giga] != M2 and b.giga_level[giga] != M2:
                size = GIGA
            else:
                a_leaf = a.giga_level[giga] != M2 or a.frame_level[frame] != 1
                b_leaf = b.giga_level[giga] != M2 or b.frame_level[frame] != 1
                if a_leaf and b_leaf:
                    size = FRAME
                elif not a_leaf and not b_leaf:
                    _compare_split(a, b, frame, totals, listed)
                    page += FRAME
                    continue
        _compare_leaf(a, b, page, size, kfence_first <= page < kfence_end, totals, listed)
        page += size


@kernel
def _compare_split(
    a: Entries, b: Entries, frame: int, totals: npt.NDArray[np.int64], listed: npt.NDArray[np.uint64]
) -> None:
    """Compare a frame that both maps hold in 4K entries: neighbours mostly hold the same, so look once."""
    a_pages, b_pages = a.slabs[a.frame_slab[frame]], b.slabs[b.frame_slab[frame]]
    same_a, same_b = -1, -1
    for i in range(FRAME):
        a_code, b_code = signed(a_pages[i]), signed(b_pages[i])
        if a_code == same_a and b_code == same_b:
            totals[_PAGES] += 1
            continue
        _compare_leaf(a, b, frame * FRAME + i, 1, False, totals, listed)
        if a_code != 0 and b_code != 0 and a.attrs[a_code] == b.attrs[b_code]:
            same_a, same_b = a_code, b_code


@kernel
def _compare_leaf(
    a: Entries,
    b: Entries,
    page: int,
    size: int,
    kfence: bool,
    totals: npt.NDArray[np.int64],
    listed: npt.NDArray[np.uint64],
) -> None:
    """Compare `size` pages that each map holds in equal entries."""
    a_level, a_code = entry_at(a, page)
    b_level, b_code = entry_at(b, page)
    if a_level == 0 and b_level == 0:
        return
    totals[_PAGES] += size
    a_attrs, b_attrs = a.attrs[a_code], b.attrs[b_code]
    differ = a_attrs ^ b_attrs
    if kfence:
        totals[_KFENCE] += size
        differ &= ~_P
    if a_level != b_level:
        totals[_LEVEL] += size
    if differ & ~_HARDWARE != np.uint64(0):
        totals[_ATTRS] += size
    elif differ != np.uint64(0):
        totals[_HARDWARE_ONLY] += size
    if a_level == b_level and differ & ~_HARDWARE == np.uint64(0):
        return
    at = totals[_LISTED]
    if at > 0:  # goes on from the last run, with the same entries?
        last = listed[at - 1]
        if (
            last[0] + last[1] == np.uint64(page)
            and last[2] == np.uint64(a_level)
            and last[3] == a_attrs
            and last[4] == np.uint64(b_level)
            and last[5] == b_attrs
        ):
            last[1] += np.uint64(size)
            return
    if at < len(listed):
        listed[at, 0], listed[at, 1] = page, size
        listed[at, 2], listed[at, 3] = a_level, a_attrs
        listed[at, 4], listed[at, 5] = b_level, b_attrs
        totals[_LISTED] = at + 1
