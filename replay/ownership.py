"""Which request a changed page belonged to at the time of the change: a join of intervals, without a loop.

A request owns a frame from its allocation on. When ownership ends is our definition, because the events do not nest
exactly: the recorder notes an allocation when it returns and a free when it begins.

* **Before the allocation returned** a change belongs to it if the allocating thread made it while nobody owned the
  frame (`secretmem_fault` unmaps its page, and execmem makes a ROX block read-only, before the region is complete).
* **After the free began** a change belongs to the freed request if it can only be the reset of its mapping: it touches
  no bits but P, RW and D, and no earlier change after the free has made the page present again (`vm_reset_perms`
  in mm/vmalloc.c: invalid, flush, default; `secretmem_free_folio` in mm/secretmem.c: default).
* Where both could be, the nearer in time has it. At the latest, ownership ends with the next allocation of the frame.

An area cut from a block lies on frames that the block owns too: it has them first, and the block what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collect.schema import Pte
from replay.requests import NEVER

__all__ = ["Touches", "join", "join_layers"]

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_RESET_BITS = np.uint64(int(Pte.P | Pte.RW | Pte.D))
_PRESENT = np.uint64(int(Pte.P))


@dataclass(frozen=True)
class Touches:
    """Pages that were touched, one row a page and touch: where, when, by which thread, with which masks."""

    place: Int64
    ts_ns: Int64
    pid: Int64
    mask_set: UInt64
    mask_clr: UInt64


def join_layers(
    touches: Touches,
    place: Int64,
    alloc_ns: Int64,
    free_ns: Int64,
    alloc_pid: Int64,
    below: npt.NDArray[np.bool_],
    *,
    after_free: bool = True,
) -> Int64:
    """As `join`, but rows marked `below` have only what no other row has, and may overlap with those."""
    owner = join(touches, np.where(below, -1, place), alloc_ns, free_ns, alloc_pid, after_free=after_free)
    left = np.flatnonzero(owner < 0)
    if below.any() and len(left):
        rest = Touches(*(getattr(touches, name)[left] for name in Touches.__dataclass_fields__))
        owner[left] = join(rest, np.where(below, place, -1), alloc_ns, free_ns, alloc_pid, after_free=after_free)
    return owner


def join(
    touches: Touches, place: Int64, alloc_ns: Int64, free_ns: Int64, alloc_pid: Int64, *, after_free: bool = True
) -> Int64:
    """For each touch the row of `place` that owned it, or -1.

    Args:
        touches: what was touched, in any order.
        place, alloc_ns, free_ns, alloc_pid: owned places (page frames, or virtual pages), one row an interval.
            Rows of the same place may not overlap; a negative place is never touched.
        after_free: also after the free, for resets. False for calls told by virtual address: vfree resets pages by
            their address in the direct map, never by that of the area.
    """
    n = len(touches.place)
    owner = np.full(n, -1, np.int64)
    if n == 0 or len(place) == 0:
        return owner
    rows = np.lexsort((alloc_ns, place))
    place, alloc_ns, free_ns, alloc_pid = place[rows], alloc_ns[rows], free_ns[rows], alloc_pid[rows]

    at = _last_at_or_before(place, alloc_ns, touches)
    previous = np.maximum(at, 0)
    has_previous = (at >= 0) & (place[previous] == touches.place)
    living = has_previous & (touches.ts_ns <= free_ns[previous])

    freed = has_previous & ~living
    candidates = np.flatnonzero(freed & after_free)
    bits = touches.mask_set[candidates] | touches.mask_clr[candidates]
    candidates = candidates[(bits & ~_RESET_BITS) == 0]
    candidates = candidates[~_reset_before(candidates, previous, touches)]
    after = np.zeros(n, np.bool_)
    after[candidates] = True

    upcoming = np.minimum(at + 1, len(place) - 1)
    before = ~living & (at + 1 < len(place)) & (place[upcoming] == touches.place)
    before &= alloc_pid[upcoming] == touches.pid
    gone = np.where(after, touches.ts_ns - np.where(freed, free_ns[previous], 0), NEVER)
    ahead = np.where(before, alloc_ns[upcoming] - touches.ts_ns, NEVER)
    take_next = before & (ahead < gone)
    take_previous = living | (after & ~take_next)
    owner[take_previous] = rows[previous[take_previous]]
    owner[take_next] = rows[upcoming[take_next]]
    return owner


def _last_at_or_before(place: Int64, alloc_ns: Int64, touches: Touches) -> Int64:
    """For each touch the last interval, in order of place and time, that begins at or before it; -1 for none."""
    n = len(place)
    both_place = np.concatenate((place, touches.place))
    both_ts = np.concatenate((alloc_ns, touches.ts_ns))
    is_touch = np.concatenate((np.zeros(n, np.int8), np.ones(len(touches.place), np.int8)))
    order = np.lexsort((is_touch, both_ts, both_place))
    n_intervals_so_far = np.cumsum(order < n) - 1
    result = np.empty(len(order), np.int64)
    result[order] = n_intervals_so_far
    return result[n:]


def _reset_before(candidates: Int64, interval: Int64, touches: Touches) -> npt.NDArray[np.bool_]:
    """Whether an earlier touch after the same free had made the page present again."""
    order = np.lexsort((touches.ts_ns[candidates], interval[candidates]))
    group = interval[candidates][order]
    present = (touches.mask_set[candidates][order] & _PRESENT != 0).astype(np.int64)
    earlier = np.cumsum(present) - present
    is_first = np.concatenate(([True], group[1:] != group[:-1])) if len(group) else np.zeros(0, np.bool_)
    base = np.maximum.accumulate(np.where(is_first, earlier, 0)) if len(group) else earlier
    done = np.empty(len(order), np.bool_)
    done[order] = earlier - base > 0
    return done
