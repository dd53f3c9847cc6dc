"""The page cache of the `__GFP_UNMAPPED` RFC as lists over flat arrays: take, split, refill, insert, merge.

Source: RFC 2023-03-08, message-id 20230308094106.227365-1-rppt@kernel.org, patches 1/5 to 3/5. One global array of
free lists of orders 0 to 10, each last-in first-out. A request is served by the smallest chunk that holds it, split
down with the lowest address kept; if there is none, the page allocator is asked for order 9, then 8, ... down to the
request's order; a freed page goes back into the lists and merges with its buddy.

The cache lives in symbolic blocks: refill number b is the block of pages [512 b, 512 b + 512). Two blocks are never
buddies here (their places are unknown), so chunks grow to order 9 only, not 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.jit import kernel

__all__ = ["BLOCK_ORDER", "N_ORDERS", "CacheRun", "run_cache"]

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]

N_ORDERS = 11
BLOCK_ORDER = 9
BLOCK = 1 << BLOCK_ORDER
_NIL = -1

# rows of the counters that the compiled part fills
_N_BLOCKS, _IDLE, _N_FAILED_REFILLS, _N_NOT_SERVED, _TAKEN, _OVERFLOW = range(6)


@dataclass(frozen=True)
class CacheRun:
    """What the cache did with a stream of requests.

    Attributes:
        dest: [pages] page of the cache given to each page of each request, -1 where the request was not served.
        idle: [events] free pages in the cache after each event.
        refill_event, refill_order, refill_request_order: [refills] the event that caused it, the order that the page
            allocator gave, and the order that was asked for. Refill b is symbolic block b.
        n_failed_refills: refills that got no block of any order.
        n_not_served: requests that failed.
        free_pages: pages on the lists at the end, every one (for the conservation test).
    """

    dest: Int64
    idle: Int64
    refill_event: Int64
    refill_order: Int64
    refill_request_order: Int64
    n_failed_refills: int
    n_not_served: int
    free_pages: Int64


def run_cache(
    event_request: Int64,
    event_is_free: npt.NDArray[np.bool_],
    event_ns: Int64,
    first: Int64,
    order: UInt8,
    free_ns: Int64,
    free_blocks: Int64,
) -> CacheRun:
    """Serve a stream of allocations and frees from an empty cache.

    Args:
        event_request, event_is_free, event_ns: [events] in order: request, whether it frees, when.
        first: [requests + 1] request i has pages first[i] to first[i + 1].
        order: [requests] 0: single pages; 9: 2 MiB pages as far as they go, single pages for the rest.
        free_ns, free_blocks: see `replay.placement.Host`.
    """
    capacity = 16
    while True:
        dest = np.full(int(first[-1]), -1, np.int64)
        idle = np.zeros(len(event_request), np.int64)
        refills = np.zeros((3, capacity), np.int64)
        counters = np.zeros(6, np.int64)
        chunk_order = np.full(capacity * BLOCK, -1, np.int8)
        links = np.full((2, capacity * BLOCK), _NIL, np.int32)
        heads = np.full(N_ORDERS, _NIL, np.int32)
        _serve(
            event_request, event_is_free, event_ns, first, order, free_ns, free_blocks,
            dest, idle, refills, counters, heads, links, chunk_order,
        )  # fmt: skip
        if not counters[_OVERFLOW]:
            break
        capacity *= 4
    n = int(counters[_N_BLOCKS])
    starts = np.flatnonzero(chunk_order >= 0)
    sizes = np.left_shift(1, chunk_order[starts].astype(np.int64))
    offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return CacheRun(
        dest=dest,
        idle=idle,
        refill_event=refills[0, :n],
        refill_order=refills[1, :n],
        refill_request_order=refills[2, :n],
        n_failed_refills=int(counters[_N_FAILED_REFILLS]),
        n_not_served=int(counters[_N_NOT_SERVED]),
        free_pages=np.repeat(starts, sizes) + offsets,
    )


@kernel
def _push(page: int, order: int, heads: Int32, links: Int32, chunk_order: npt.NDArray[np.int8]) -> None:
    head = heads[order]
    links[0, page] = head
    links[1, page] = -1
    if head >= 0:
        links[1, head] = page
    heads[order] = page
    chunk_order[page] = order


@kernel
def _unlink(page: int, order: int, heads: Int32, links: Int32, chunk_order: npt.NDArray[np.int8]) -> None:
    after, before = links[0, page], links[1, page]
    if before >= 0:
        links[0, before] = after
    else:
        heads[order] = after
    if after >= 0:
        links[1, after] = before
    chunk_order[page] = -1


@kernel
def _take(order: int, heads: Int32, links: Int32, chunk_order: npt.NDArray[np.int8]) -> int:
    """The head of the smallest list that can serve `order`, split down with the lowest address kept; -1 if none."""
    for k in range(order, 11):
        page = heads[k]
        if page >= 0:
            _unlink(page, k, heads, links, chunk_order)
            while k > order:
                k -= 1
                _push(page + (1 << k), k, heads, links, chunk_order)
            return int(page)
    return -1


@kernel
def _insert(page: int, order: int, heads: Int32, links: Int32, chunk_order: npt.NDArray[np.int8]) -> None:
    """Put a chunk back, merged with its buddy as often as that is free and of the same order."""
    while order < 9:
        buddy = page ^ (1 << order)
        if chunk_order[buddy] != order:
            break
        _unlink(buddy, order, heads, links, chunk_order)
        page = min(page, buddy)
        order += 1
    _push(page, order, heads, links, chunk_order)


@kernel
def _refill_order(order: int, now: int, taken: int, free_ns: Int64, free_blocks: Int64) -> int:
    """Order that the page allocator gives: 9, or the next below that the last count of free blocks has; -1 if none.

    What earlier refills took is subtracted: the recorded kernel never made them.
    """
    if len(free_ns) == 0:
        return 9
    row = max(int(np.searchsorted(free_ns, now, side="right")) - 1, 0)
    for k in range(9, order - 1, -1):
        pages = 0
        for j in range(k, 11):
            pages += free_blocks[row, j] << j
        if pages - taken >= 1 << k:
            return k
    return -1


@kernel
def _alloc(
    order: int, event: int, now: int, free_ns: Int64, free_blocks: Int64,
    refills: Int64, counters: Int64, heads: Int32, links: Int32, chunk_order: npt.NDArray[np.int8],
) -> int:  # fmt: skip
    page = _take(order, heads, links, chunk_order)
    if page < 0:
        got = _refill_order(order, now, counters[_TAKEN], free_ns, free_blocks)
        if got < 0:
            counters[_N_FAILED_REFILLS] += 1
            return -1
        block = counters[_N_BLOCKS]
        if block >= refills.shape[1]:
            counters[_OVERFLOW] = 1
            return -1
        refills[0, block], refills[1, block], refills[2, block] = event, got, order
        counters[_N_BLOCKS] += 1
        counters[_IDLE] += 1 << got
        counters[_TAKEN] += 1 << got
        _insert(block * 512, got, heads, links, chunk_order)
        page = _take(order, heads, links, chunk_order)
    counters[_IDLE] -= 1 << order
    return page


@kernel
def _serve(
    event_request: Int64, event_is_free: npt.NDArray[np.bool_], event_ns: Int64, first: Int64, order: UInt8,
    free_ns: Int64, free_blocks: Int64, dest: Int64, idle: Int64, refills: Int64, counters: Int64,
    heads: Int32, links: Int32, chunk_order: npt.NDArray[np.int8],
) -> None:  # fmt: skip
    for event in range(len(event_request)):
        request = event_request[event]
        start, end = first[request], first[request + 1]
        if event_is_free[event]:
            for i in range(start, end):
                if dest[i] >= 0:
                    _insert(dest[i], 0, heads, links, chunk_order)
                    counters[_IDLE] += 1
        else:
            i = start
            failed = False
            while i < end and not failed:
                k = 9 if order[request] == 9 and end - i >= 512 else 0
                page = _alloc(
                    k, event, event_ns[event], free_ns, free_blocks, refills, counters, heads, links, chunk_order
                )
                if counters[_OVERFLOW]:
                    return
                if page < 0:
                    failed = True
                else:
                    for j in range(1 << k):
                        dest[i + j] = page + j
                    i += 1 << k
            if failed:  # as vmalloc does: what it got goes back, the request fails
                counters[_N_NOT_SERVED] += 1
                for j in range(start, i):
                    _insert(dest[j], 0, heads, links, chunk_order)
                    counters[_IDLE] += 1
                    dest[j] = -1
        idle[event] = counters[_IDLE]
