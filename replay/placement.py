"""What a policy hands to the engine: where every page of every request lies, and what the policy itself did to the map.

A page's place is a page frame of the recorded machine, or a page of a **symbolic block**: a 2 MiB block of memory of
which the trace cannot tell where it lay, because the recorded kernel never allocated it. A symbolic block is known to
be one naturally aligned 2 MiB frame, mapped by one intact 2M entry when the policy takes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from collect.schema import HUGE_FRAME_PAGES, Pte
from replay.requests import Requests

__all__ = ["GONE", "INVALID_CLR", "SYMBOLIC", "Acts", "Host", "Placement", "as_recorded"]

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

GONE = -1
"""Place of a page whose recorded changes do not happen under the policy."""

SYMBOLIC = 1 << 52
"""Added to `block * 512 + page`: place of a page in a symbolic block. No x86-64 machine has such a page frame."""

INVALID_CLR = int(Pte.P | Pte.RW)
"""What `set_direct_map_invalid_noflush` clears and `..._default_noflush` sets (arch/x86/mm/pat/set_memory.c)."""


@dataclass(frozen=True)
class Acts:
    """Changes that a policy makes on its own account, in order of time: `n_pages` one-page steps each.

    Attributes:
        ts_ns: when.
        place: of the first page (see `Placement.dest`).
        n_pages: steps, one a page, upwards from `place`.
        mask_set, mask_clr: `Pte` bits.
        n_calls: primary calls of the choke point that this stands for.
        n_call_flushes: TLB flushes at the end of such calls.
        n_range_flushes: ranged TLB flushes besides.
    """

    ts_ns: Int64
    place: Int64
    n_pages: Int64
    mask_set: UInt64
    mask_clr: UInt64
    n_calls: Int64
    n_call_flushes: Int64
    n_range_flushes: Int64

    @classmethod
    def none(cls) -> Acts:
        empty = np.zeros(0, np.int64)
        return cls(empty, empty, empty, empty.astype(np.uint64), empty.astype(np.uint64), empty, empty, empty)


@dataclass(frozen=True)
class Placement:
    """One way a trace may have gone under a policy.

    Attributes:
        dest: [pages of all requests] place of each page: page frame, symbolic page, or `GONE`.
        n_blocks: symbolic blocks used.
        in_pieces: [n_blocks] the block stands for memory allocated in pieces smaller than 2 MiB (all False if empty).
        acts: the policy's own changes.
        idle_ns, idle_pages: pages that the policy holds and nobody uses, from each moment on.
        refill_orders: order of each refill; `refill_failures`: attempts to refill that got nothing.
        served, not_served, as_recorded: requests that the policy served, could not serve, did not concern.
        swallowed: [requests] the request's own changes and calls do not happen under this policy.
    """

    dest: Int64
    swallowed: npt.NDArray[np.bool_]
    n_blocks: int = 0
    in_pieces: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    acts: Acts = field(default_factory=Acts.none)
    idle_ns: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    idle_pages: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    refill_orders: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    refill_failures: int = 0
    served: int = 0
    not_served: int = 0
    as_recorded: int = 0
    pages_unmapped: int = 0

    def __post_init__(self) -> None:
        if not len(self.in_pieces):
            object.__setattr__(self, "in_pieces", np.zeros(self.n_blocks, np.bool_))
        symbolic = self.dest[self.dest >= SYMBOLIC]
        if len(symbolic) and int(symbolic.max()) >= SYMBOLIC + self.n_blocks * HUGE_FRAME_PAGES:
            raise ValueError("a page lies in a symbolic block beyond n_blocks")


@dataclass(frozen=True)
class Host:
    """What a policy may know of the recorded machine.

    Attributes:
        n_nodes: NUMA nodes with memory (those of buddyinfo; at least 1).
        n_frames: 2 MiB frames of RAM (at least 1).
        free_ns: [m] times at which the free blocks were counted.
        free_blocks: [m, 11] free blocks of each order, all zones together but DMA. m = 0: never counted.
    """

    n_nodes: int
    free_ns: Int64
    free_blocks: Int64
    n_frames: int = 1 << 20


def as_recorded(requests: Requests) -> Placement:
    """Every request on the frames that the recorded kernel gave it."""
    return Placement(dest=requests.pfn.copy(), swallowed=np.zeros(len(requests), np.bool_), as_recorded=len(requests))
