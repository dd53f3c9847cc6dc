"""The compiled loop under `replay.engine`: applies steps and acts to a map, and keeps `replay.books` on it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analyze.directmap import Entries, SplitLog, Window, change_range
from analyze.entries import FRAME, FRAME_SHIFT, GIGA_SHIFT, collapse_frame, collapse_giga
from analyze.entries import RODATA_END as RODATA_END_CELL
from analyze.entries import RODATA_FIRST as RODATA_FIRST_CELL
from analyze.entries import SYMBOLIC as SYMBOLIC_CELL
from analyze.hotplug import add_range, remove_range
from analyze.jit import kernel, signed
from analyze.rules import split_leaf
from collect.schema import Level, Pte
from replay.books import (
    HOSTED,
    LIVE_REAL,
    LIVE_SYM,
    MERGING,
    SPLIT_REAL,
    SPLIT_SYM,
    STEPS,
    Books,
    count_splits,
    keep_peak,
    n_special,
    recount,
    resync,
    settle,
)
from replay.placement import GONE, NOBODY
from replay.steps import CHANGE, COLLAPSE, COLLAPSE_GIGA, HOTPLUG_ADD, HOTPLUG_REMOVE, SPLIT_LEFT

__all__ = ["ActColumns", "StepColumns", "walk_steps"]

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

_ORDINARY = np.uint64(int(Pte.P | Pte.RW))
_GONE, _NOBODY = GONE, NOBODY
_G1 = int(Level.G1)
_FRAME, _FRAME_SHIFT, _GIGA_SHIFT = FRAME, FRAME_SHIFT, GIGA_SHIFT
_CHANGE, _COLLAPSE, _COLLAPSE_GIGA = CHANGE, COLLAPSE, COLLAPSE_GIGA
_ADD, _REMOVE, _SPLIT_LEFT = HOTPLUG_ADD, HOTPLUG_REMOVE, SPLIT_LEFT
_SYMBOLIC_CELL, _RODATA_FIRST_CELL, _RODATA_END_CELL = SYMBOLIC_CELL, RODATA_FIRST_CELL, RODATA_END_CELL


class StepColumns(NamedTuple):
    """`replay.steps.Steps` as the compiled loop takes them."""

    op: npt.NDArray[np.uint8]
    row: Int64
    entry_ns: Int64
    exit_ns: Int64
    pfn: Int64
    n_pages: Int64
    n_done: Int64
    mask_set: UInt64
    mask_clr: UInt64
    force_split: Bools
    has_pgd: Bools
    seen_level: npt.NDArray[np.uint8]
    seen_attrs: UInt64
    mask_id: npt.NDArray[np.int16]
    page_first: Int64
    page_owned: Int64


class ActColumns(NamedTuple):
    """`replay.placement.Acts`; `at`: the step before which each comes; `mask_id`: as that of steps, with numbers of its own."""

    at: Int64
    ts_ns: Int64
    place: Int64
    n_pages: Int64
    step_pages: Int64
    mask_set: UInt64
    mask_clr: UInt64
    user: npt.NDArray[np.uint8]
    mask_id: npt.NDArray[np.int16]


@kernel
def _apply(
    m: Entries, log: SplitLog, window: Window, row: int, entry_ns: int, exit_ns: int, pfn: int, n_pages: int,
    n_done: int, mask_set: np.uint64, mask_clr: np.uint64, force_split: bool, has_pgd: bool, who: int, books: Books,
) -> int:  # fmt: skip
    """One step on the map, and what it changes in the books. 0, or the status of a failure."""
    if n_done <= 0:
        return 0
    symbolic = m.meta[_SYMBOLIC_CELL] >> _FRAME_SHIFT
    frame, last = pfn >> _FRAME_SHIFT, (pfn + n_done - 1) >> _FRAME_SHIFT
    alone = frame == last and books.split_now[frame]  # mostly: look only at the pages that change
    before = n_special(m, pfn, n_done) if alone else 0
    n_logged = log.n[0]
    failed, _, _ = change_range(
        m, log, window, row, entry_ns, exit_ns, pfn, n_pages, n_done, mask_set, mask_clr, force_split, has_pgd
    )
    if failed < 0:
        return failed
    books.tally[STEPS] += 1
    if alone:
        recount(books, frame, n_special(m, pfn, n_done) - before, symbolic)
    else:
        resync(m, log, n_logged, frame, last, who, symbolic, books)
    keep_peak(books.tally)
    count_splits(log, n_logged, symbolic, books)
    if books.tally[MERGING] != 0:
        for at in range(frame, last + 1):
            if force_split:
                books.keep_small[at] = True
            settle(m, books, at, symbolic)
    return 0


@kernel
def _other(
    m: Entries, log: SplitLog, row: int, exit_ns: int, op: int, pfn: int, n_pages: int, level: int, attrs: np.uint64,
    books: Books,
) -> int:  # fmt: skip
    """Large entries put back by the recorded kernel, memory that came or went, and what a call that failed had split.

    0, or the status of a failure.
    """
    n_logged = log.n[0]
    first, last = pfn >> _FRAME_SHIFT, (pfn + max(n_pages, 1) - 1) >> _FRAME_SHIFT
    if op in (_COLLAPSE, _COLLAPSE_GIGA):
        last = first
        if collapse_frame(m, first) and op == _COLLAPSE_GIGA:
            collapse_giga(m, pfn >> _GIGA_SHIFT)
    elif op == _REMOVE:
        remove_range(m, pfn, n_pages)
    elif op == _ADD and add_range(m, pfn, n_pages, level, attrs) < 0:
        return -1
    elif op == _SPLIT_LEFT:
        status = split_leaf(m, log, row, exit_ns, pfn, level)
        if status < 0:
            return status
    symbolic = m.meta[_SYMBOLIC_CELL] >> _FRAME_SHIFT
    resync(m, log, n_logged, first, last, _NOBODY, symbolic, books)
    count_splits(log, n_logged, symbolic, books)
    return 0


@kernel
def _sample(until: int, at: int, grid_ns: Int64, curves: Int64, books: Books) -> int:
    """Write the tally, and what each user split, at every moment of the grid before `until`; the next moment to write."""
    tally, by_user = books.tally, books.by_user
    while at < len(grid_ns) and grid_ns[at] < until:
        curves[0, at] = tally[SPLIT_REAL] + tally[SPLIT_SYM] - tally[HOSTED]
        curves[1, at] = tally[SPLIT_REAL] + tally[SPLIT_SYM]
        curves[2, at] = tally[LIVE_REAL] + max(0, tally[LIVE_SYM] - tally[HOSTED])
        curves[3, at] = tally[LIVE_REAL] + tally[LIVE_SYM]
        for user in range(by_user.shape[1]):
            curves[4 + user, at] = by_user[0, user]
            curves[4 + by_user.shape[1] + user, at] = by_user[1, user]
        at += 1
    return at


@kernel
def _carry(
    m: Entries, log: SplitLog, window: Window, steps: StepColumns, s: int, dest: Int64,
    page_user: npt.NDArray[np.uint8], books: Books,
) -> int:  # fmt: skip
    """One recorded step, each of its pages where the placement put it. 0, or the status of a failure."""
    first = steps.page_first[s]
    if steps.page_first[s + 1] == first:  # nobody's pages: stays where it is
        return _apply(
            m, log, window, steps.row[s], steps.entry_ns[s], steps.exit_ns[s], steps.pfn[s], steps.n_pages[s],
            steps.n_done[s], steps.mask_set[s], steps.mask_clr[s], steps.force_split[s], steps.has_pgd[s],
            _NOBODY, books,
        )  # fmt: skip
    start, length, who = 0, 0, _NOBODY
    for i in range(steps.n_pages[s] + 1):
        place, user = _GONE, _NOBODY
        if i < steps.n_pages[s]:
            owned = steps.page_owned[first + i]
            place = dest[owned] if owned >= 0 else steps.pfn[s] + i
            user = signed(page_user[owned]) if owned >= 0 else _NOBODY
        if length > 0 and place == start + length and i < steps.n_pages[s]:
            length += 1
            continue
        if length > 0:
            done = min(length, steps.n_done[s] - (i - length))
            status = _apply(
                m, log, window, steps.row[s], steps.entry_ns[s], steps.exit_ns[s], start, length, done,
                steps.mask_set[s], steps.mask_clr[s], steps.force_split[s], steps.has_pgd[s], who, books,
            )  # fmt: skip
            if status < 0:
                return status
        start, length, who = place, 1 if place >= 0 else 0, user
    return 0


@kernel
def walk_steps(
    m: Entries, log: SplitLog, window: Window, steps: StepColumns, dest: Int64, page_user: npt.NDArray[np.uint8],
    acts: ActColumns, books: Books, grid_ns: Int64, curves: Int64, known: npt.NDArray[np.int32],
) -> int:  # fmt: skip
    """All steps and acts in order; see `replay.engine.walk`. 0, or the status of a failure.

    Most of them change one page of a frame that is split already. For those, `known[mask_id, code]` remembers what the
    rules made of an attribute code before (-1: not yet), so that the rules are asked once for each pair. This part stands
    here as a whole: a call for each change, with all these arrays, takes four times as long as the change.
    """
    symbolic = m.meta[_SYMBOLIC_CELL] >> _FRAME_SHIFT
    rodata_first, rodata_end = m.meta[_RODATA_FIRST_CELL], m.meta[_RODATA_END_CELL]
    special, split_now, tally = books.special, books.split_now, books.tally
    merging = tally[MERGING] != 0
    at, status, n_quick = 0, 0, 0
    next_step, next_act, nth_page = 0, 0, 0
    while True:
        s, act, n, place = next_step, -1, 1, 0
        if next_act < len(acts.at) and acts.at[next_act] <= next_step:
            act = next_act
            n = min(acts.step_pages[act], acts.n_pages[act] - nth_page)
            place, mask = acts.place[act] + nth_page, signed(acts.mask_id[act])
            entry_ns, exit_ns = acts.ts_ns[act], acts.ts_ns[act]
            nth_page += n
            if nth_page >= acts.n_pages[act]:
                next_act, nth_page = next_act + 1, 0
            if n != 1:
                mask = -1
        elif s < len(steps.op):
            next_step += 1
            place, mask = steps.pfn[s], signed(steps.mask_id[s])
            entry_ns, exit_ns = steps.entry_ns[s], steps.exit_ns[s]
            first = steps.page_first[s]
            if mask >= 0 and steps.page_first[s + 1] > first and steps.page_owned[first] >= 0:
                place = dest[steps.page_owned[first]]
                if place < 0:
                    continue
        else:
            break
        slab, code, cell, frame = -1, 0, 0, place >> _FRAME_SHIFT
        if mask >= 0 and split_now[frame] and not rodata_first <= place < rodata_end:
            slab = signed(m.frame_slab[frame])
            cell = place & (_FRAME - 1)
            code = signed(m.slabs[slab, cell])
            new = code
            if code >= known.shape[1]:
                new = -1
            elif code > 0 and exit_ns > window.lo[frame] and entry_ns < window.hi[frame]:
                new = signed(known[mask, code])
            if new >= 0:
                n_quick += 1
                if new != code:
                    m.slabs[slab, cell] = new
                    is_special = m.attrs[new] & _ORDINARY != _ORDINARY
                    delta = 0
                    if is_special != (m.attrs[code] & _ORDINARY != _ORDINARY):
                        delta = 1 if is_special else -1
                    if special[frame] > 0 and special[frame] + delta > 0:
                        special[frame] += delta  # it was live, and still is
                    else:
                        at = _sample(exit_ns, at, grid_ns, curves, books)
                        recount(books, frame, delta, symbolic)
                        keep_peak(tally)
                        if merging:
                            settle(m, books, frame, symbolic)
                elif merging and special[frame] == 0:
                    settle(m, books, frame, symbolic)
                continue
        at = _sample(exit_ns, at, grid_ns, curves, books)
        if act >= 0:
            status = _apply(
                m, log, window, -1, entry_ns, exit_ns, place, n, n, acts.mask_set[act], acts.mask_clr[act],
                False, False, signed(acts.user[act]), books,
            )  # fmt: skip
        elif steps.op[s] != _CHANGE:
            status = _other(
                m, log, steps.row[s], exit_ns, steps.op[s], steps.pfn[s], steps.n_pages[s],
                steps.seen_level[s], steps.seen_attrs[s], books,
            )  # fmt: skip
        else:
            status = _carry(m, log, window, steps, s, dest, page_user, books)
        if status < 0:
            return status
        if 0 < code < known.shape[1] and split_now[frame]:  # merged, it has one page's attributes for all
            known[mask, code] = m.slabs[slab, cell]
    tally[STEPS] += n_quick
    _sample(np.iinfo(np.int64).max, at, grid_ns, curves, books)
    return 0
