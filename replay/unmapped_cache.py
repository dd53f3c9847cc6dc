"""A page cache as lists over flat arrays: take, split, refill, insert, merge, shrink.

Source: RFC 2023-03-08, message-id 20230308094106.227365-1-rppt@kernel.org, patches 1/5 to 3/5. One global array of
free lists of orders 0 to 10, each last-in first-out. A request is served by the smallest chunk that holds it, split
down with the lowest address kept; if there is none, the page allocator is asked for order 9, then 8, ... down to the
request's order; a freed page goes back into the lists and merges with its buddy. `CacheRules` make other caches of it:
one that has order-0 pages alone, one that is asked for other orders.

The cache lives in symbolic blocks: refill b is the block of pages [512 b, 512 b + 512). Two blocks are never buddies here
(their places are unknown), so chunks grow to order 9 only, not 10.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analyze.jit import kernel, signed
from replay.cache_rules import BLOCK_ORDER, CacheRules, CacheRun
from replay.free_lists import insert, insert_run, push, push_pages, smallest, take_run, unlink
from replay.longer import longer
from replay.placement import MAX_BLOCKS, Host, too_many_blocks
from replay.pressure import FREE, SHRINK, with_shrinker

__all__ = ["N_ORDERS", "run_cache"]

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

N_ORDERS = 11
BLOCK = 1 << BLOCK_ORDER

# cells of the counters that the compiled part fills
(
    _N_REFILLS, _N_BLOCKS, _IDLE, _N_FAILED_REFILLS, _N_NOT_SERVED, _TAKEN, _FULL, _N_RELEASES, _N_SPARE, _ABSORBED, _BEGUN,
) = range(11)  # fmt: skip
# cells of the rules
_MERGE, _DESCENDING, _CLEAR_BIT, _HOPEFUL = range(4)


def run_cache(
    event_request: Int64, event_is_free: Bools, event_ns: Int64, first: Int64, order: UInt8, host: Host,
    rules: CacheRules | None = None,
) -> CacheRun:  # fmt: skip
    """Serve a stream of allocations and frees from an empty cache, shrunk whenever the host is short of memory.

    Args:
        event_request, event_is_free, event_ns: [events] in order: request, whether it frees, when.
        first: [requests + 1] request i has pages first[i] to first[i + 1].
        order: [requests] 0: single pages; 9: 2 MiB pages as far as they go, single pages for the rest.
        host: free blocks and memory pressure over time.
    """
    rules = rules or CacheRules()
    subject, op, ns = with_shrinker(event_request, event_is_free, event_ns, host)
    row = np.maximum(np.searchsorted(host.free_ns, ns, side="right") - 1, 0 if len(host.free_ns) else -1)
    ladder = np.zeros(N_ORDERS, np.bool_)
    ladder[list(rules.orders)] = True
    flags = np.array([rules.merge, rules.descending, rules.clear_bit, rules.hopeful], np.int64)
    dest = np.full(int(first[-1]), -1, np.int64)
    idle = np.zeros(len(op), np.int64)
    counters = np.zeros(11, np.int64)
    heads = np.full(N_ORDERS, -1, np.int32)
    capacity = 16
    refills = np.zeros((4, capacity), np.int64)
    releases = np.zeros((3, capacity), np.int64)
    chunk_order = np.full(capacity * BLOCK, -1, np.int8)
    links = np.full((2, capacity * BLOCK), -1, np.int32)
    blocks = np.zeros((3, capacity), np.int64)  # bit, pages out, spare whole blocks
    event = 0
    while True:
        event = _serve(
            event, subject, op, row, first, order, host.free_blocks, ladder, flags,
            dest, idle, refills, releases, counters, heads, links, chunk_order, blocks,
        )  # fmt: skip
        if event == len(op):
            break
        if op[event] == SHRINK:
            releases = longer(
                releases, 2 * releases.shape[1] + _most_released(int(counters[_IDLE]), int(subject[event]))
            )
        elif counters[_N_REFILLS] == refills.shape[1]:
            refills = longer(refills, 4 * refills.shape[1])
        elif counters[_N_BLOCKS] > MAX_BLOCKS:
            raise too_many_blocks(int(counters[_N_BLOCKS]))
        else:
            capacity = min(capacity * (4 if capacity < MAX_BLOCKS // 16 else 2), MAX_BLOCKS + 1)
            blocks = longer(blocks, capacity)
            chunk_order, links = longer(chunk_order, capacity * BLOCK, -1), longer(links, capacity * BLOCK, -1)
    n, n_blocks, n_out = (int(counters[cell]) for cell in (_N_REFILLS, _N_BLOCKS, _N_RELEASES))
    starts = np.flatnonzero(chunk_order >= 0)
    sizes = np.left_shift(1, chunk_order[starts].astype(np.int64))
    offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    in_pieces = np.zeros(n_blocks, np.bool_)
    in_pieces[refills[3, :n][refills[1, :n] < BLOCK_ORDER]] = True
    return CacheRun(
        ns=ns,
        dest=dest,
        idle=idle,
        refill_event=refills[0, :n],
        refill_order=refills[1, :n],
        refill_request_order=refills[2, :n],
        refill_block=refills[3, :n],
        refill_request=subject[refills[0, :n]],
        release_event=releases[0, :n_out],
        release_page=releases[1, :n_out],
        release_order=releases[2, :n_out],
        n_blocks=n_blocks,
        in_pieces=in_pieces,
        n_failed_refills=int(counters[_N_FAILED_REFILLS]),
        n_not_served=int(counters[_N_NOT_SERVED]),
        n_absorbed=int(counters[_ABSORBED]),
        free_pages=np.repeat(starts, sizes) + offsets,
        out=blocks[1, :n_blocks],
    )


@kernel
def _refill_order(order: int, row: int, taken: int, free_blocks: Int64, ladder: Bools) -> int:
    """Order that the page allocator gives: the highest tried that a count of free blocks has (`row` -1: any); -1 if none.

    What the cache holds is subtracted: the recorded kernel never gave it away.
    """
    for k in range(10, order - 1, -1):
        if not ladder[k]:
            continue
        if row < 0:
            return k
        pages = 0
        for j in range(k, 11):
            pages += free_blocks[row, j] << j
        if pages - taken >= 1 << k:
            return k
    return -1


@kernel
def _refill(
    order: int, event: int, row: int, free_blocks: Int64, ladder: Bools, flags: Int64,
    refills: Int64, counters: Int64, heads: Int32, links: Int32, chunk_order: Int8, blocks: Int64,
) -> bool:  # fmt: skip
    """Ask the page allocator for a chunk that holds `order`. False: there is none, or no room to write it down."""
    got = _refill_order(order, row, counters[_TAKEN], free_blocks, ladder)
    if got < 0:
        counters[_N_FAILED_REFILLS] += 1
        return False
    refill = counters[_N_REFILLS]
    if refill >= refills.shape[1] or counters[_N_BLOCKS] >= blocks.shape[1]:
        counters[_FULL] = 1
        return False
    if got == 9 and counters[_N_SPARE] > 0:
        counters[_N_SPARE] -= 1
        block = blocks[2, counters[_N_SPARE]]
    else:
        block = counters[_N_BLOCKS]
        counters[_N_BLOCKS] += 1
    refills[0, refill], refills[1, refill], refills[2, refill], refills[3, refill] = event, got, order, block
    counters[_N_REFILLS] += 1
    counters[_TAKEN] += 1 << got
    blocks[0, block], blocks[1, block] = 1, 0
    joined = got
    if flags[_HOPEFUL] != 0 and got < 9 and flags[_MERGE] != 0:
        joined = 9
        counters[_ABSORBED] += 512 - (1 << got)
    counters[_IDLE] += 1 << joined
    if flags[_MERGE] != 0:
        insert(block * 512, joined, heads, links, chunk_order)
    else:
        push_pages(block * 512, 1 << joined, heads, links, chunk_order)
    return True


@kernel
def _leave(page: int, order: int, flags: Int64, counters: Int64, blocks: Int64) -> None:
    """Pages of the cache belong to the page allocator again."""
    block = page >> 9
    blocks[1, block] += 1 << order
    counters[_TAKEN] -= 1 << order
    if flags[_HOPEFUL] != 0 and blocks[1, block] == 512:
        blocks[0, block] = 0
        blocks[2, counters[_N_SPARE]] = block
        counters[_N_SPARE] += 1


@kernel
def _give(
    dest: Int64, start: int, end: int, flags: Int64, counters: Int64, heads: Int32, links: Int32, chunk_order: Int8,
    blocks: Int64,
) -> None:  # fmt: skip
    """Pages were freed: into the cache where the bit of their block is set, else to the page allocator."""
    i = start
    while i < end:
        page, n = dest[i], 1
        i += 1
        if page < 0:
            continue
        if blocks[0, page >> 9] == 0:
            _leave(page, 0, flags, counters, blocks)
            continue
        if flags[_MERGE] == 0:
            push(page, 0, heads, links, chunk_order)
        else:
            while i < end and dest[i] == page + n and dest[i] & 511 != 0:
                i, n = i + 1, n + 1
            insert_run(page, n, heads, links, chunk_order)
        counters[_IDLE] += n


@kernel
def _most_released(idle: int, n_to_scan: int) -> int:
    """Chunks that `_shrink` takes at most: of each order as many as hold `n_to_scan` pages, and none without a page."""
    return min(idle, 2 * min(max(n_to_scan, 0), idle) + 11)


@kernel
def _shrink(
    n_to_scan: int, event: int, flags: Int64, releases: Int64, counters: Int64, heads: Int32, links: Int32,
    chunk_order: Int8, blocks: Int64,
) -> None:  # fmt: skip
    """unmapped_alloc_scan_objects (RFC 3/5): each order in turn, and what was freed so far subtracted after each, twice."""
    begun = counters[_N_RELEASES]
    scanned = 0
    for i in range(11):
        order = 10 - i if flags[_DESCENDING] != 0 else i
        freed = 0
        while freed < n_to_scan and heads[order] >= 0:
            page = signed(heads[order])
            unlink(page, order, heads, links, chunk_order)
            at = counters[_N_RELEASES]
            releases[0, at], releases[1, at], releases[2, at] = event, page, order
            counters[_N_RELEASES] += 1
            counters[_IDLE] -= 1 << order
            if order == 9 or flags[_CLEAR_BIT] != 0:
                blocks[0, page >> 9] = 0
            freed += 1 << order
        scanned += freed
        if scanned >= n_to_scan:
            break
        n_to_scan -= scanned
    for at in range(begun, counters[_N_RELEASES]):
        page, order = releases[1, at], releases[2, at]
        if flags[_HOPEFUL] != 0 and blocks[0, page >> 9] != 0:
            if flags[_MERGE] != 0:
                insert(page, order, heads, links, chunk_order)
            else:
                push_pages(page, 1 << order, heads, links, chunk_order)
            counters[_IDLE] += 1 << order
            counters[_ABSORBED] += 1 << order
        else:
            _leave(page, order, flags, counters, blocks)


@kernel
def _serve(
    event: int, subject: Int64, op: UInt8, row: Int64, first: Int64, order: UInt8, free_blocks: Int64, ladder: Bools,
    flags: Int64, dest: Int64, idle: Int64, refills: Int64, releases: Int64, counters: Int64, heads: Int32, links: Int32,
    chunk_order: Int8, blocks: Int64,
) -> int:  # fmt: skip
    """Events from `event` on. Returns the one at which an array was too short: call again with longer ones, and it goes on there."""
    while event < len(op):
        if op[event] == SHRINK:
            if counters[_N_RELEASES] + _most_released(counters[_IDLE], subject[event]) > releases.shape[1]:
                return event
            _shrink(subject[event], event, flags, releases, counters, heads, links, chunk_order, blocks)
            idle[event] = counters[_IDLE]
            event += 1
            continue
        request = subject[event]
        start, end = first[request], first[request + 1]
        if op[event] == FREE:
            _give(dest, start, end, flags, counters, heads, links, chunk_order, blocks)
        else:
            i = start + counters[_BEGUN]
            counters[_BEGUN] = 0
            while i < end:
                lowest = 9 if order[request] == 9 and end - i >= 512 else 0
                k = smallest(lowest, heads)
                if k < 0:
                    refilled = _refill(
                        lowest, event, row[event], free_blocks, ladder, flags, refills, counters, heads, links,
                        chunk_order, blocks,
                    )  # fmt: skip
                    if counters[_FULL] != 0:
                        counters[_FULL], counters[_BEGUN] = 0, i - start
                        return event
                    k = smallest(lowest, heads) if refilled else -1
                    if k < 0:  # also where a cache of single pages is asked for a block
                        break
                n = min(end - i, 1 << k) if lowest == 0 else 512
                page = take_run(k, n, heads, links, chunk_order)
                for j in range(n):
                    dest[i + j] = page + j
                counters[_IDLE] -= n
                i += n
            if i < end:  # as vmalloc does: what it got goes back, the request fails
                counters[_N_NOT_SERVED] += 1
                _give(dest, start, i, flags, counters, heads, links, chunk_order, blocks)
                for j in range(start, i):
                    dest[j] = -1
        idle[event] = counters[_IDLE]
        event += 1
    return event
