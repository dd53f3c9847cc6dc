"""Primary calls at the choke point: whose they are, and how they flush the TLB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.changes import Changes
from collect.errors import TraceError
from collect.schema import ChangeKind, Pte, RegionKind
from replay.ownership import Touches, join_layers
from replay.placement import INVALID_CLR
from replay.requests import Life, Requests
from replay.steps import Steps

__all__ = ["Calls", "read_calls", "text_pages"]

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_INVALID = np.uint64(INVALID_CLR)
_PAGE_SHIFT = np.uint64(12)
_NX = np.uint64(int(Pte.NX))

PAGES_AT_ONCE = 1 << 20
MAX_PARTS = 64
"""Of so many pages that calls made executable; a quarter of a terabyte."""

MAX_TEXT_PAGES = 1 << 15
"""Pages of a call that makes code executable; the module area of x86-64 has 1 GiB, and no module a fraction of that."""


@dataclass(frozen=True)
class Calls:
    """Primary calls within the recording.

    Attributes:
        request: [calls] request whose pages or area it changed, -1 for none.
        flushes: [calls] it flushes at its end if it changed something. `set_direct_map_*_noflush`, told by its masks
            (P and RW together, one way), does not.
        ranged: [requests] ranged flushes that the request's life takes besides: one by vfree's reset of its mapping
            (`vm_reset_perms`), one by the fault of a secret page (`secretmem_fault`).
    """

    request: Int64
    flushes: Bools
    ranged: Int64

    @classmethod
    def none(cls) -> Calls:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros(0, np.int64))


def read_calls(changes: Changes, steps: Steps, requests: Requests, start_ns: int, end_ns: int) -> Calls:
    """The primary calls that ended after `start_ns` and began before `end_ns`."""
    in_time = (changes.exit_ns > start_ns) & (changes.ts_ns < end_ns)
    # A nested call with a stack of its own is a primary one too, made in the reclaim of another's allocation.
    primary = (changes.depth == 0) | (changes.stack_id != 0)
    rows = np.flatnonzero((changes.kind == ChangeKind.CPA) & primary & in_time)
    page_owner = np.append(requests.owner, -1)[steps.page_owned] if len(requests) else steps.page_owned
    step = np.repeat(np.arange(len(steps)), np.diff(steps.page_first))
    owned = page_owner >= 0

    request = np.full(len(changes), -1, np.int64)
    request[_roots(changes)[steps.row[step[owned]]]] = page_owner[owned]
    request = request[rows]
    by_address = np.flatnonzero((request < 0) & (changes.address[rows] != 0))
    page = _by_address(changes, rows[by_address], np.zeros(len(by_address), np.int64), requests)
    request[by_address] = np.where(page >= 0, np.append(requests.owner, -1)[page], -1)

    masks = changes.mask_set[rows], changes.mask_clr[rows]
    direct_map_api = ((masks[0] & _INVALID) == _INVALID) | ((masks[1] & _INVALID) == _INVALID)
    ranged = np.where(requests.kind == RegionKind.SECRET_PAGE, 1, 0)
    reset = owned & ((steps.mask_clr[step] & _INVALID) == _INVALID)
    ranged[page_owner[reset]] = 1
    return Calls(request=request, flushes=~direct_map_api, ranged=ranged)


def _roots(changes: Changes) -> Int64:
    """Row of the primary call of each row; the row itself where its parents were lost."""
    root = np.arange(len(changes), dtype=np.int64)
    order = np.argsort(changes.call_id, kind="stable")
    ids = changes.call_id[order]
    if not len(ids):
        return root
    at = np.minimum(np.searchsorted(ids, changes.parent_id), len(ids) - 1)
    found = (changes.parent_id != 0) & (ids[at] == changes.parent_id) & (changes.stack_id == 0)
    parent = np.where(found, order[at], root)
    for _ in range(8):  # two levels of nesting in the kernel, reclaim inside a split may add a few
        parent = parent[parent]
    return parent


def text_pages(changes: Changes, requests: Requests) -> Bools:
    """[pages] whether the page was made executable: a call cleared NX at its virtual address.

    Of an image in a pack all pages are; it was made executable with the pack. Raises TraceError for more of them than
    there can be.
    """
    text = np.repeat(requests.life == Life.IMAGE, requests.n_pages)
    primary = (changes.depth == 0) | (changes.stack_id != 0)
    made = (changes.kind == ChangeKind.CPA) & primary & (changes.mask_clr & _NX != 0) & (changes.address != 0)
    rows = np.flatnonzero(made & (changes.n_pages <= MAX_TEXT_PAGES))
    part = np.cumsum(changes.n_pages[rows]) // PAGES_AT_ONCE
    if len(part) and part[-1] > MAX_PARTS:
        raise TraceError(
            f"changes: calls that make {int(changes.n_pages[rows].sum())} pages executable, more than any recording of ours; "
            "the trace is forged or damaged: copy it anew"
        )
    for some in np.split(rows, np.flatnonzero(np.diff(part)) + 1):
        counts = changes.n_pages[some]
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        page = _by_address(changes, np.repeat(some, counts), nth, requests)
        text[page[page >= 0]] = True
    return text


def _by_address(changes: Changes, rows: Int64, nth_page: Int64, requests: Requests) -> Int64:
    """Page of a request behind the address of each call, `nth_page` further on, by virtual page and time; -1 if none."""
    owner = requests.owner
    nth = np.arange(len(owner)) - np.repeat(requests.first[:-1], requests.n_pages)
    base = (requests.address >> _PAGE_SHIFT).astype(np.int64)[owner]
    place = np.where(base > 0, base + nth, -1)
    page = join_layers(
        Touches(
            (changes.address[rows] >> _PAGE_SHIFT).astype(np.int64) + nth_page,
            changes.ts_ns[rows],
            changes.pid[rows].astype(np.int64),
            changes.mask_set[rows],
            changes.mask_clr[rows],
        ),
        place,
        requests.alloc_ns[owner],
        requests.free_ns[owner],
        requests.alloc_pid[owner],
        requests.life[owner] == Life.CACHE,
        after_free=False,
    )
    return page
