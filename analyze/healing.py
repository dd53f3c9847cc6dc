"""Which causes, taken away one after the other, set most frames free: greedily, over frames held by sets of causes.

A frame is free when every cause that holds it is gone. The best set of k causes is hard to find (it is a densest
subhypergraph); what is said here is exact for the order that it says, and the order is greedy: the cause that now holds
most frames alone; where no cause holds one alone, the set of causes that frees most frames for each cause in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analyze.jit import kernel, signed

__all__ = ["Holds", "Order", "healing_order", "hold"]

_MIX = np.uint64(0x9E37_79B9_7F4A_7C15)  # splitmix64 (Steele, Lea, Flood 2014)
_MIX_2 = np.uint64(0xBF58_476D_1CE4_E5B9)
_SHIFT = np.uint64(30)


@dataclass
class Holds:
    """Which causes hold which frames, each pair once; both numbered from 0.

    Attributes:
        frame_start, causes: causes of frame f are causes[frame_start[f]:frame_start[f + 1]], ascending.
        cause_start, frames: frames of cause c are frames[cause_start[c]:cause_start[c + 1]], ascending.
        pages: int64 per pair, in the order of `causes`: pages of that cause in that frame.
    """

    frame_start: npt.NDArray[np.int64]
    causes: npt.NDArray[np.int64]
    cause_start: npt.NDArray[np.int64]
    frames: npt.NDArray[np.int64]
    pages: npt.NDArray[np.int64]

    @property
    def n_frames(self) -> int:
        return len(self.frame_start) - 1

    @property
    def n_causes(self) -> int:
        return len(self.cause_start) - 1

    def frame_of(self) -> npt.NDArray[np.int64]:
        """Frame of each pair, in the order of `causes`."""
        return np.repeat(np.arange(self.n_frames), np.diff(self.frame_start))

    def alone(self) -> npt.NDArray[np.bool_]:
        """Per pair: does this cause hold this frame alone?"""
        return np.asarray(np.diff(self.frame_start)[self.frame_of()] == 1)


@dataclass
class Order:
    """A healing order.

    Attributes:
        step_of_cause: int64 per cause: the step that takes it away; -1: none does.
        step_of_frame: int64 per frame: the step that frees it; -1: none does.
        healed: int64 per step: frames that it frees.
        first: frames that are free once the causes that were gone from the start are.
    """

    step_of_cause: npt.NDArray[np.int64]
    step_of_frame: npt.NDArray[np.int64]
    healed: npt.NDArray[np.int64]
    first: int


class _Work(NamedTuple):
    """What an order is worked out in: per cause word (of hashes), gone, alone (frames it holds alone), taken (in this step);
    per frame left (causes that hold it still), fixed (held for good), key (hash of the set of causes left); a hash table."""

    word: npt.NDArray[np.uint64]
    gone: npt.NDArray[np.bool_]
    left: npt.NDArray[np.int64]
    fixed: npt.NDArray[np.bool_]
    key: npt.NDArray[np.uint64]
    alone: npt.NDArray[np.int64]
    taken: npt.NDArray[np.int64]
    slot_frame: npt.NDArray[np.int64]
    slot_count: npt.NDArray[np.int64]


def hold(frame: npt.NDArray[np.int64], cause: npt.NDArray[np.int64], n_frames: int, n_causes: int) -> Holds:
    """From one (frame, cause) a page, in any order."""
    key, pages = np.unique(frame * max(n_causes, 1) + cause, return_counts=True)
    frames, causes = key // max(n_causes, 1), key % max(n_causes, 1)
    frame_start = np.searchsorted(frames, np.arange(n_frames + 1))
    by_cause = np.argsort(causes, kind="stable")
    cause_start = np.searchsorted(causes[by_cause], np.arange(n_causes + 1))
    return Holds(frame_start, causes, cause_start, frames[by_cause], pages.astype(np.int64))


def healing_order(
    holds: Holds,
    removable: npt.NDArray[np.bool_],
    gone: npt.NDArray[np.bool_],
    healable: npt.NDArray[np.bool_],
    most: int,
) -> Order:
    """At most `most` steps, ended where no further step frees a frame.

    Args:
        removable: per cause; what holds a frame and is not removable holds it for good.
        gone: per cause: taken away before the first step.
        healable: per frame; the others are freed by nothing.
    """
    step_of_cause, step_of_frame = np.full(holds.n_causes, -1, np.int64), np.full(holds.n_frames, -1, np.int64)
    healed = np.zeros(most, np.int64)
    cost = np.bincount(holds.causes, holds.pages, minlength=holds.n_causes).astype(np.int64)
    slots = 1 << max(4, (2 * holds.n_frames).bit_length())
    work = _Work(
        word=np.arange(1, holds.n_causes + 1, dtype=np.uint64) * _MIX,
        gone=gone.copy(),
        left=np.zeros(holds.n_frames, np.int64),
        fixed=~healable,
        key=np.zeros(holds.n_frames, np.uint64),
        alone=np.zeros(holds.n_causes, np.int64),
        taken=np.empty(holds.n_causes, np.int64),
        slot_frame=np.empty(slots, np.int64),
        slot_count=np.empty(slots, np.int64),
    )
    work.word[:] = (work.word ^ (work.word >> _SHIFT)) * _MIX_2
    n_steps, first = _order(
        holds.frame_start, holds.causes, holds.cause_start, holds.frames, cost, removable & ~gone, work,
        step_of_cause, step_of_frame, healed,
    )  # fmt: skip
    return Order(step_of_cause, step_of_frame, healed[:n_steps], first)


@kernel
def _order(
    frame_start: npt.NDArray[np.int64],
    causes: npt.NDArray[np.int64],
    cause_start: npt.NDArray[np.int64],
    frames: npt.NDArray[np.int64],
    cost: npt.NDArray[np.int64],
    removable: npt.NDArray[np.bool_],
    work: _Work,
    step_of_cause: npt.NDArray[np.int64],
    step_of_frame: npt.NDArray[np.int64],
    healed: npt.NDArray[np.int64],
) -> tuple[int, int]:
    """Steps made, and frames free before the first."""
    n_frames, n_causes = len(frame_start) - 1, len(cause_start) - 1
    word, gone, left, fixed, key = work.word, work.gone, work.left, work.fixed, work.key
    alone, taken = work.alone, work.taken
    first = 0
    for f in range(n_frames):
        last = -1
        for i in range(frame_start[f], frame_start[f + 1]):
            c = causes[i]
            if gone[c]:
                continue
            left[f] += 1
            key[f] += word[c]
            last = c
            if not removable[c]:
                fixed[f] = True
        if left[f] == 0 and not fixed[f] and frame_start[f + 1] > frame_start[f]:
            first += 1
        if left[f] == 1 and not fixed[f]:
            alone[last] += 1
    n_steps = 0
    while n_steps < len(healed):
        best = -1
        for c in range(n_causes):
            if gone[c] or alone[c] == 0:
                continue
            if best < 0 or alone[c] > alone[best] or (alone[c] == alone[best] and cost[c] < cost[best]):
                best = c
        n_taken = 0
        if best >= 0:
            taken[0], n_taken = best, 1
        else:
            f = _best_set(left, fixed, key, work.slot_frame, work.slot_count)
            if f < 0:
                break
            for i in range(frame_start[f], frame_start[f + 1]):
                if not gone[causes[i]]:
                    taken[n_taken] = causes[i]
                    n_taken += 1
        for t in range(n_taken):
            c = taken[t]
            gone[c] = True
            step_of_cause[c] = n_steps
            for j in range(cause_start[c], cause_start[c + 1]):
                f = frames[j]
                left[f] -= 1
                key[f] -= word[c]
                if fixed[f]:
                    continue
                if left[f] == 0:
                    healed[n_steps] += 1
                    step_of_frame[f] = n_steps
                elif left[f] == 1:
                    for i in range(frame_start[f], frame_start[f + 1]):
                        if not gone[causes[i]]:
                            alone[causes[i]] += 1
        n_steps += 1
    return n_steps, first


@kernel
def _best_set(
    left: npt.NDArray[np.int64],
    fixed: npt.NDArray[np.bool_],
    key: npt.NDArray[np.uint64],
    slot_frame: npt.NDArray[np.int64],
    slot_count: npt.NDArray[np.int64],
) -> int:
    """A frame whose set of causes frees most frames of just that set, for each cause in it; -1 where no frame is left."""
    for at in range(len(slot_frame)):
        slot_frame[at] = -1
    mask = len(slot_frame) - 1
    best, best_count = -1, 0
    for f in range(len(left)):
        if fixed[f] or left[f] == 0:
            continue
        at = signed(key[f] >> np.uint64(20)) & mask
        while slot_frame[at] >= 0 and key[slot_frame[at]] != key[f]:
            at = (at + 1) & mask
        if slot_frame[at] < 0:
            slot_frame[at], slot_count[at] = f, 0
        slot_count[at] += 1
        of = signed(slot_frame[at])
        if (
            best < 0
            or slot_count[at] * left[best] > best_count * left[of]
            or (slot_count[at] * left[best] == best_count * left[of] and (left[of], of) < (left[best], best))
        ):
            best, best_count = of, signed(slot_count[at])
    return best
