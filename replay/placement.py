"""What a policy hands to the engine: where every page of every request lies, and what the policy itself did to the map.

A page's place is a page frame of the recorded machine, or a page of a **symbolic block**: a 2 MiB block of memory of
which the trace cannot tell where it lay, because the recorded kernel never allocated it. A symbolic block is known to
be one naturally aligned 2 MiB frame, mapped by one intact 2M entry when the policy takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from analyze.users import USER_NAMES
from collect.errors import TraceError
from collect.schema import HUGE_FRAME_PAGES, Pte
from replay.requests import Requests

__all__ = [
    "GONE",
    "INVALID_CLR",
    "MAX_BLOCKS",
    "NOBODY",
    "SYMBOLIC",
    "Acts",
    "Host",
    "Placement",
    "Served",
    "as_recorded",
    "too_many_blocks",
]

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

NOBODY = len(USER_NAMES)
"""Stands for a `User` where no request brought a change about."""

GONE = -1
"""Place of a page whose recorded changes do not happen under the policy."""

SYMBOLIC = 1 << 52
"""Added to `block * 512 + page`: place of a page in a symbolic block. No x86-64 machine has such a page frame."""

INVALID_CLR = int(Pte.P | Pte.RW)
"""What `set_direct_map_invalid_noflush` clears and `..._default_noflush` sets (arch/x86/mm/pat/set_memory.c)."""


@dataclass(frozen=True)
class Acts:
    """Changes that a policy makes on its own account, in order of time.

    Attributes:
        ts_ns: when.
        place: of the first page (see `Placement.dest`).
        n_pages: how many pages, upwards from `place`.
        step_pages: how many of them one call of the choke point takes: 1, or all for one call on the whole range.
        mask_set, mask_clr: `Pte` bits.
        n_calls: primary calls of the choke point that this stands for.
        n_call_flushes: TLB flushes at the end of such calls.
        n_range_flushes: ranged TLB flushes besides.
        user: `User` code of the request that brought it about, `NOBODY` for none.
    """

    ts_ns: Int64
    place: Int64
    n_pages: Int64
    step_pages: Int64
    mask_set: UInt64
    mask_clr: UInt64
    n_calls: Int64
    n_call_flushes: Int64
    n_range_flushes: Int64
    user: npt.NDArray[np.uint8]

    @classmethod
    def of(
        cls, ts_ns: Int64, place: Int64, n_pages: Int64 | int, *, whole: bool = False,
        mask_set: UInt64 | int = 0, mask_clr: UInt64 | int = 0,
        n_calls: Int64 | int = 0, n_call_flushes: Int64 | int = 0, n_range_flushes: Int64 | int = 0,
        user: npt.NDArray[np.uint8] | int = NOBODY,
    ) -> Acts:  # fmt: skip
        """Acts of one kind; a number stands for as many equal cells. `whole`: each is one call on all its pages.

        Columns may be read-only, or the arrays that were given (do not change those afterwards), and a number one cell in memory, as
        numpy broadcasts it: they are mostly joined right away.
        """
        n = len(ts_ns)

        def column(values: Int64 | int) -> Int64:
            return np.broadcast_to(np.asarray(values, np.int64), n)

        pages = column(n_pages)
        return cls(
            ts_ns=np.asarray(ts_ns, np.int64),
            place=np.asarray(place, np.int64),
            n_pages=pages,
            step_pages=np.maximum(pages, 1) if whole else np.ones(n, np.int64),
            mask_set=np.broadcast_to(np.asarray(mask_set, np.uint64), n),
            mask_clr=np.broadcast_to(np.asarray(mask_clr, np.uint64), n),
            n_calls=column(n_calls),
            n_call_flushes=column(n_call_flushes),
            n_range_flushes=column(n_range_flushes),
            user=np.broadcast_to(np.asarray(user, np.uint8), n),
        )

    @classmethod
    def none(cls) -> Acts:
        return cls.of(np.zeros(0, np.int64), np.zeros(0, np.int64), 0)

    @classmethod
    def joined(cls, *parts: Acts) -> Acts:
        """All of `parts` in order of time; at equal times in the order given."""
        some = [part for part in parts if len(part)] or [*parts[:1]]
        ts_ns = np.concatenate([part.ts_ns for part in some])
        if (ts_ns[1:] < ts_ns[:-1]).any():
            at = np.empty(len(ts_ns), np.int64)
            at[np.argsort(ts_ns, kind="stable")] = np.arange(len(ts_ns))
        else:
            at = np.arange(len(ts_ns))
        ends = np.cumsum([len(part) for part in some])
        columns = {name: np.empty(len(ts_ns), getattr(some[0], name).dtype) for name in cls.__dataclass_fields__}
        for part, end in zip(some, ends.tolist(), strict=True):
            rows = at[end - len(part) : end]
            for name, column in columns.items():
                column[rows] = getattr(part, name)
        return cls(**columns)

    def __len__(self) -> int:
        return len(self.ts_ns)


class Served(IntEnum):
    """What became of a request."""

    AS_RECORDED = 0
    """None of the policy's business: it stays where it was."""
    SERVED = 1
    NOT_SERVED = 2
    """The policy had no memory for it, and no other way: it fails, and its changes do not happen."""


MAX_BLOCKS = 1 << 18
"""Symbolic blocks of a placement; each that is split takes a kilobyte, and half a terabyte of them is more than any cache holds."""


def too_many_blocks(n: int) -> TraceError:
    """What to say of more than `MAX_BLOCKS`."""
    return TraceError(
        f"the policy would take {n} pieces of memory apart, more than can be followed ({MAX_BLOCKS}); "
        "choose a larger refill order or fewer users, or the trace is forged"
    )


@dataclass(frozen=True)
class Placement:
    """One way a trace may have gone under a policy.

    Attributes:
        dest: [pages of all requests] place of each page: page frame, symbolic page, or `GONE`.
        swallowed: [requests] the request's own changes and calls do not happen under this policy.
        state: [requests] `Served`; all AS_RECORDED if empty.
        n_blocks: symbolic blocks used.
        apart: the blocks are taken to lie in frames of their own, none of which was split; else any of them may also have lain
            where one was.
        in_pieces: [n_blocks] the block stands for memory allocated in pieces smaller than 2 MiB (all False if empty).
        acts: the policy's own changes.
        idle_ns, idle_pages: pages that the policy holds and nobody uses, from each moment on.
        refill_orders: order of each refill; `refill_failures`: attempts to refill that got nothing.
        pages_unmapped: pages that the policy itself took out of the direct map.
        pages_released: pages that the policy gave back under memory pressure, or because it needed them no more.
        n_calls_saved: primary calls of requests, not swallowed, that do not happen.
        merged_at_last: at the end every frame that could be one entry is (see `replay.books`): the least that merging leaves.
    """

    dest: Int64
    swallowed: Bools
    state: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    n_blocks: int = 0
    apart: bool = False
    in_pieces: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    acts: Acts = field(default_factory=Acts.none)
    idle_ns: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    idle_pages: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    refill_orders: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    refill_failures: int = 0
    pages_unmapped: int = 0
    pages_released: int = 0
    n_calls_saved: int = 0
    merged_at_last: bool = False

    def __post_init__(self) -> None:
        if not len(self.in_pieces):
            object.__setattr__(self, "in_pieces", np.zeros(self.n_blocks, np.bool_))
        if not len(self.state):
            object.__setattr__(self, "state", np.zeros(len(self.swallowed), np.uint8))
        end = SYMBOLIC + self.n_blocks * HUGE_FRAME_PAGES
        if int(self.dest.max(initial=GONE)) >= end or int((self.acts.place + self.acts.n_pages).max(initial=0)) > end:
            raise ValueError("a page lies in a symbolic block beyond n_blocks")

    @property
    def served(self) -> int:
        return int(np.count_nonzero(self.state == Served.SERVED))

    @property
    def not_served(self) -> int:
        return int(np.count_nonzero(self.state == Served.NOT_SERVED))

    @property
    def as_recorded(self) -> int:
        return int(np.count_nonzero(self.state == Served.AS_RECORDED))


@dataclass(frozen=True)
class Host:
    """What a policy may know of the recorded machine.

    Attributes:
        n_nodes: NUMA nodes with memory (those of buddyinfo; at least 1).
        n_frames: 2 MiB frames of RAM (at least 1).
        pressure_ns, pressure_pages: moments at which memory is short, and how many pages each then asks back from a
            cache (the nr_to_scan of its shrinker). Empty: never.
        room: [frames] ordinary pages (present and writable RAM) of each 2M frame that 4K entries mapped at the start.
        free_ns: [m] times at which the free blocks were counted.
        free_blocks: [m, 11] free blocks of each order, all zones together but DMA. m = 0: never counted.
        recorder_programs: BPF programs that the recorder itself had loaded before the recording began.
        next_pages: where every page event was recorded, `replay.next_pages.next_single_pages` of the trace.
    """

    n_nodes: int
    free_ns: Int64
    free_blocks: Int64
    n_frames: int = 1 << 20
    pressure_ns: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    pressure_pages: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    room: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    recorder_programs: int = 0
    next_pages: Callable[[Int64, int], Int64] | None = None

    def without_pressure(self) -> Host:
        """The same machine, never short of memory."""
        return replace(self, pressure_ns=np.zeros(0, np.int64), pressure_pages=np.zeros(0, np.int64))

    def between_readings(self) -> tuple[Host, Host]:
        """The same machine twice: from each count of free blocks to the next, as much memory in blocks of each order and above
        as the higher of the two counts says, and as the lower. What was there in between alone is not known."""
        orders = np.arange(self.free_blocks.shape[1])
        pages = np.cumsum((self.free_blocks << orders)[:, ::-1], axis=1)[:, ::-1]  # in blocks of an order and above
        after = np.concatenate((pages[1:], pages[-1:]))

        def host(at_least: Int64) -> Host:
            above = np.concatenate((at_least[:, 1:], np.zeros((len(at_least), 1), np.int64)), axis=1)
            return replace(self, free_blocks=(at_least - above) >> orders)

        return host(np.maximum(pages, after)), host(np.minimum(pages, after))

    def not_told(self, what: str) -> str:
        """Sentence for `Outcome.narrow`: where `what` would have lain, and what would tell more of it."""
        if self.next_pages is None:
            return f"Where {what} would have lain is not in the trace. A recording with --pages all would tell which frames were free."
        return f"Where {what} would have lain is not in the trace; frames that its page events prove to have been in use are left out."

    def readings_leave_open(self, refill_orders: Int64) -> bool:
        """Whether it makes a difference which of two counts holds between them: one leaves no block of 2 MiB to a policy that
        holds what all these refills got, and the other is not the same."""
        if len(self.free_ns) < 2 or (self.free_blocks == self.free_blocks[0]).all():
            return False
        pages = (self.free_blocks[:, 9:] << np.arange(9, self.free_blocks.shape[1])).sum(axis=1)
        return int(pages.min()) < int(np.left_shift(1, refill_orders).sum()) + HUGE_FRAME_PAGES

    def has_block(self, ns: Int64) -> Bools:
        """Per moment, whether the last count of free blocks has one of 2 MiB; True where nothing was ever counted."""
        if not len(self.free_ns):
            return np.ones(len(ns), np.bool_)
        row = np.maximum(np.searchsorted(self.free_ns, ns, side="right") - 1, 0)
        there: Bools = self.free_blocks[row, 9:].sum(axis=1) > 0
        return there


def as_recorded(requests: Requests) -> Placement:
    """Every request on the frames that the recorded kernel gave it."""
    return Placement(dest=requests.pfn.copy(), swallowed=np.zeros(len(requests), np.bool_))
