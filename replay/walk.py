"""The compiled loop under `replay.engine`: applies steps and acts to a map and keeps the tally of what they split.

Books that are kept beside the map, per 2M frame: how many of its pages are special (not present, or not writable),
whether it is split now, and whether it was split in this run. The tally follows from them. `hostable` says of a real
frame that a whole block may have lain there once it is split (it is RAM), and of a symbolic one that it stands for
memory in pieces, which may have lain among others' pages.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analyze.directmap import Entries, SplitLog, Window, change_range
from analyze.entries import FRAME, FRAME_SHIFT, GIGA_SHIFT, collapse_frame, collapse_giga
from analyze.entries import RODATA_END as RODATA_END_CELL
from analyze.entries import RODATA_FIRST as RODATA_FIRST_CELL
from analyze.entries import SYMBOLIC as SYMBOLIC_CELL
from analyze.hotplug import add_range, remove_range
from analyze.jit import kernel
from analyze.rules import split_leaf
from collect.schema import Level, Pte
from replay.placement import GONE
from replay.steps import CHANGE, COLLAPSE, COLLAPSE_GIGA, HOTPLUG_ADD, HOTPLUG_REMOVE, SPLIT_LEFT

__all__ = [
    "CANDIDATES",
    "GIGA_REAL",
    "HOSTED",
    "LIVE_REAL",
    "LIVE_SYM",
    "N_TALLY",
    "PEAK_HI",
    "PEAK_LO",
    "SPLIT_REAL",
    "SPLIT_SYM",
    "STEPS",
    "walk_steps",
]

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_ORDINARY = np.uint64(int(Pte.P | Pte.RW))
_GONE = GONE
_K4, _M2, _G1 = int(Level.K4), int(Level.M2), int(Level.G1)
_FRAME, _FRAME_SHIFT, _GIGA_SHIFT = FRAME, FRAME_SHIFT, GIGA_SHIFT
_CHANGE, _COLLAPSE, _COLLAPSE_GIGA = CHANGE, COLLAPSE, COLLAPSE_GIGA
_ADD, _REMOVE, _SPLIT_LEFT = HOTPLUG_ADD, HOTPLUG_REMOVE, SPLIT_LEFT
_SYMBOLIC_CELL, _RODATA_FIRST_CELL, _RODATA_END_CELL = SYMBOLIC_CELL, RODATA_FIRST_CELL, RODATA_END_CELL

SPLIT_REAL, SPLIT_SYM, HOSTED, HOSTED_WHOLE, LIVE_REAL, LIVE_SYM, CANDIDATES, GIGA_REAL, STEPS, PEAK_LO, PEAK_HI = (
    range(11)
)
N_TALLY = 11


@kernel
def _n_special(m: Entries, first: int, n: int) -> int:
    """Special pages among `n` pages of one split frame."""
    slab = m.frame_slab[first >> _FRAME_SHIFT]
    count = 0
    start = first & (_FRAME - 1)
    for i in range(start, start + n):
        code = m.slabs[slab, i]
        if code != 0 and m.attrs[code] & _ORDINARY != _ORDINARY:
            count += 1
    return count


@kernel
def _is_split(m: Entries, frame: int) -> bool:
    return m.giga_level[frame >> 9] == _M2 and m.frame_level[frame] == _K4  # type: ignore[no-any-return]


@kernel
def _recount(
    frame: int, delta: int, symbolic: int,
    special: npt.NDArray[np.int32], hostable: npt.NDArray[np.bool_], split_now: npt.NDArray[np.bool_],
    split_in_run: npt.NDArray[np.bool_], tally: Int64,
) -> None:  # fmt: skip
    """A split frame has `delta` more special pages: keep the number of live frames and of possible hosts."""
    before = special[frame]
    after = before + delta
    special[frame] = after
    if (before == 0) == (after == 0):
        return
    step = 1 if after > 0 else -1
    if split_in_run[frame]:
        tally[LIVE_SYM if frame >= symbolic else LIVE_REAL] += step
    if frame < symbolic and hostable[frame] and split_now[frame]:
        tally[CANDIDATES] -= step


@kernel
def _newly_split(
    frame: int, n_special: int, counts: bool, symbolic: int,
    special: npt.NDArray[np.int32], hostable: npt.NDArray[np.bool_], split_now: npt.NDArray[np.bool_],
    split_in_run: npt.NDArray[np.bool_], tally: Int64,
) -> None:  # fmt: skip
    """A frame is mapped by 4K entries from now on; a distinct one is counted once however often it is split."""
    split_now[frame] = True
    special[frame] = n_special
    if counts and not split_in_run[frame]:
        split_in_run[frame] = True
        if frame >= symbolic:
            tally[SPLIT_SYM] += 1
            if hostable[frame]:  # in pieces: may lie in split frames among pages of others
                tally[HOSTED] += 1
            elif tally[CANDIDATES] > tally[HOSTED_WHOLE]:
                tally[HOSTED_WHOLE] += 1
                tally[HOSTED] += 1
        else:
            tally[SPLIT_REAL] += 1
    if n_special > 0:
        if split_in_run[frame]:
            tally[LIVE_SYM if frame >= symbolic else LIVE_REAL] += 1
    elif frame < symbolic and hostable[frame]:
        tally[CANDIDATES] += 1


@kernel
def _resync(
    m: Entries, log: SplitLog, n_logged: int, first: int, last: int, symbolic: int,
    special: npt.NDArray[np.int32], hostable: npt.NDArray[np.bool_], split_now: npt.NDArray[np.bool_],
    split_in_run: npt.NDArray[np.bool_], tally: Int64,
) -> None:  # fmt: skip
    """Bring the books on frames `first` to `last` in line with the map, whatever happened to them."""
    for frame in range(first, last + 1):
        if _is_split(m, frame):
            total = _n_special(m, frame << _FRAME_SHIFT, _FRAME)
            if split_now[frame]:
                _recount(frame, total - special[frame], symbolic, special, hostable, split_now, split_in_run, tally)
            else:
                counts = False  # a hole that was filled by 4K entries is no split
                for i in range(n_logged, log.n[0]):
                    counts = counts or (log.level[i] == _M2 and log.pfn[i] >> _FRAME_SHIFT == frame)
                _newly_split(frame, total, counts, symbolic, special, hostable, split_now, split_in_run, tally)
        elif split_now[frame]:  # put back, or memory removed
            _recount(frame, -special[frame], symbolic, special, hostable, split_now, split_in_run, tally)
            if frame < symbolic and hostable[frame]:
                tally[CANDIDATES] -= 1
            split_now[frame] = False


@kernel
def _peak(tally: Int64) -> None:
    """Keep the most frames that were live at once."""
    tally[PEAK_LO] = max(tally[PEAK_LO], tally[LIVE_REAL] + max(0, tally[LIVE_SYM] - tally[HOSTED]))
    tally[PEAK_HI] = max(tally[PEAK_HI], tally[LIVE_REAL] + tally[LIVE_SYM])


@kernel
def _apply(
    m: Entries, log: SplitLog, window: Window, row: int, entry_ns: int, exit_ns: int, pfn: int, n_pages: int,
    n_done: int, mask_set: np.uint64, mask_clr: np.uint64, force_split: bool, has_pgd: bool,
    special: npt.NDArray[np.int32], hostable: npt.NDArray[np.bool_], split_now: npt.NDArray[np.bool_],
    split_in_run: npt.NDArray[np.bool_], tally: Int64,
) -> int:  # fmt: skip
    """One step on the map, and what it changes in the tally. 0, or the status of a failure."""
    if n_done <= 0:
        return 0
    symbolic = m.meta[_SYMBOLIC_CELL] >> _FRAME_SHIFT
    frame, last = pfn >> _FRAME_SHIFT, (pfn + n_done - 1) >> _FRAME_SHIFT
    alone = frame == last and split_now[frame]  # mostly: look only at the pages that change
    before = _n_special(m, pfn, n_done) if alone else 0
    n_logged = log.n[0]
    n_giga, _, _ = change_range(
        m, log, window, row, entry_ns, exit_ns, pfn, n_pages, n_done, mask_set, mask_clr, force_split, has_pgd
    )
    if n_giga < 0:
        return n_giga
    tally[GIGA_REAL] += n_giga
    tally[STEPS] += 1
    if alone:
        delta = _n_special(m, pfn, n_done) - before
        _recount(frame, delta, symbolic, special, hostable, split_now, split_in_run, tally)
    else:
        _resync(m, log, n_logged, frame, last, symbolic, special, hostable, split_now, split_in_run, tally)
    _peak(tally)
    return 0


@kernel
def _other(
    m: Entries, log: SplitLog, row: int, exit_ns: int, op: int, pfn: int, n_pages: int, level: int, attrs: np.uint64,
    special: npt.NDArray[np.int32], hostable: npt.NDArray[np.bool_], split_now: npt.NDArray[np.bool_],
    split_in_run: npt.NDArray[np.bool_], tally: Int64,
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
        if level == _G1:
            tally[GIGA_REAL] += log.n[0] - n_logged
    symbolic = m.meta[_SYMBOLIC_CELL] >> _FRAME_SHIFT
    _resync(m, log, n_logged, first, last, symbolic, special, hostable, split_now, split_in_run, tally)
    return 0


@kernel
def _sample(until: int, at: int, grid_ns: Int64, curves: Int64, tally: Int64) -> int:
    """Write the tally at every moment of the grid before `until`; the next moment to write."""
    while at < len(grid_ns) and grid_ns[at] < until:
        curves[0, at] = tally[SPLIT_REAL] + tally[SPLIT_SYM] - tally[HOSTED]
        curves[1, at] = tally[SPLIT_REAL] + tally[SPLIT_SYM]
        curves[2, at] = tally[LIVE_REAL] + max(0, tally[LIVE_SYM] - tally[HOSTED])
        curves[3, at] = tally[LIVE_REAL] + tally[LIVE_SYM]
        at += 1
    return at


@kernel
def walk_steps(
    m: Entries, log: SplitLog, window: Window,
    op: npt.NDArray[np.uint8], row: Int64, entry_ns: Int64, exit_ns: Int64, pfn: Int64, n_pages: Int64, n_done: Int64,
    mask_set: UInt64, mask_clr: UInt64, force_split: npt.NDArray[np.bool_], has_pgd: npt.NDArray[np.bool_],
    seen_level: npt.NDArray[np.uint8], seen_attrs: UInt64, mask_id: npt.NDArray[np.int16],
    page_first: Int64, page_owned: Int64, dest: Int64,
    act_at: Int64, act_ns: Int64, act_place: Int64, act_pages: Int64, act_set: UInt64, act_clr: UInt64,
    special: npt.NDArray[np.int32], hostable: npt.NDArray[np.bool_], split_now: npt.NDArray[np.bool_],
    split_in_run: npt.NDArray[np.bool_], tally: Int64, grid_ns: Int64, curves: Int64, known: npt.NDArray[np.int32],
) -> int:  # fmt: skip
    """All steps and acts in order; see `replay.engine.walk`. 0, or the status of a failure.

    Most steps change one page of a frame that is split already. For those, `known[mask_id, code]` remembers what the
    rules made of an attribute code before (-1: not yet), so that the rules are asked once for each pair.
    """
    symbolic = m.meta[_SYMBOLIC_CELL] >> _FRAME_SHIFT
    rodata_first, rodata_end = m.meta[_RODATA_FIRST_CELL], m.meta[_RODATA_END_CELL]
    act, at, status = 0, 0, 0
    for s in range(len(op) + 1):
        while act < len(act_at) and act_at[act] <= s:
            at = _sample(act_ns[act], at, grid_ns, curves, tally)
            for i in range(act_pages[act]):
                status = _apply(
                    m, log, window, -1, act_ns[act], act_ns[act], act_place[act] + i, 1, 1,
                    act_set[act], act_clr[act], False, False,
                    special, hostable, split_now, split_in_run, tally,
                )  # fmt: skip
                if status < 0:
                    return status
            act += 1
        if s == len(op):
            break
        first = page_first[s]
        slab, code, cell = np.int64(-1), np.int64(0), np.int64(0)
        if mask_id[s] >= 0:
            place = pfn[s]
            if page_first[s + 1] > first and page_owned[first] >= 0:
                place = dest[page_owned[first]]
                if place < 0:
                    continue
            frame = place >> _FRAME_SHIFT
            if split_now[frame] and not rodata_first <= place < rodata_end:
                slab = np.int64(m.frame_slab[frame])
                cell = place & (_FRAME - 1)
                code = np.int64(m.slabs[slab, cell])
                new = code
                if code >= known.shape[1]:
                    new = np.int64(-1)
                elif code > 0 and exit_ns[s] > window.lo[frame] and entry_ns[s] < window.hi[frame]:
                    new = np.int64(known[mask_id[s], code])
                if new >= 0:
                    tally[STEPS] += 1
                    if new != code:
                        m.slabs[slab, cell] = new
                        is_special = m.attrs[new] & _ORDINARY != _ORDINARY
                        if is_special != (m.attrs[code] & _ORDINARY != _ORDINARY):
                            delta = 1 if is_special else -1
                            if special[frame] > 0 and special[frame] + delta > 0:
                                special[frame] += delta  # it was live, and still is
                            else:
                                at = _sample(exit_ns[s], at, grid_ns, curves, tally)
                                _recount(
                                    frame, delta, symbolic, special, hostable, split_now, split_in_run, tally
                                )  # fmt: skip
                                _peak(tally)
                    continue
        at = _sample(exit_ns[s], at, grid_ns, curves, tally)
        if op[s] != _CHANGE:
            status = _other(
                m, log, row[s], exit_ns[s], op[s], pfn[s], n_pages[s], seen_level[s], seen_attrs[s],
                special, hostable, split_now, split_in_run, tally,
            )  # fmt: skip
            if status < 0:
                return status
            continue
        if page_first[s + 1] == first:  # nobody's pages: stays where it is
            status = _apply(
                m, log, window, row[s], entry_ns[s], exit_ns[s], pfn[s], n_pages[s], n_done[s],
                mask_set[s], mask_clr[s], force_split[s], has_pgd[s],
                special, hostable, split_now, split_in_run, tally,
            )  # fmt: skip
            if status < 0:
                return status
            if 0 < code < known.shape[1]:
                known[mask_id[s], code] = m.slabs[slab, cell]
            continue
        start, length = 0, 0
        for i in range(n_pages[s] + 1):
            place = _GONE
            if i < n_pages[s]:
                owned = page_owned[first + i]
                place = dest[owned] if owned >= 0 else pfn[s] + i
            if length > 0 and place == start + length and i < n_pages[s]:
                length += 1
                continue
            if length > 0:
                done = min(length, n_done[s] - (i - length))
                status = _apply(
                    m, log, window, row[s], entry_ns[s], exit_ns[s], start, length, done,
                    mask_set[s], mask_clr[s], force_split[s], has_pgd[s],
                    special, hostable, split_now, split_in_run, tally,
                )  # fmt: skip
                if status < 0:
                    return status
            start, length = place, 1 if place >= 0 else 0
        if 0 < code < known.shape[1]:
            known[mask_id[s], code] = m.slabs[slab, cell]
    _sample(np.iinfo(np.int64).max, at, grid_ns, curves, tally)
    return 0
