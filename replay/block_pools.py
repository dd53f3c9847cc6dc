"""Pools of whole 2 MiB blocks: a page comes from a block that its pool has, and a block comes and goes as a whole.

What `secretmem-pool` and `pageblock-flip` share. Among the blocks of a pool that have a free page the one that got a page
back last is used first, and in a block the page that came back last (a gen_pool or a free list would take others; which
page of a block it is decides nothing here).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.jit import kernel
from replay.longer import longer
from replay.placement import MAX_BLOCKS, Host, too_many_blocks
from replay.pressure import ALLOC, FREE, SHRINK, with_shrinker

__all__ = ["PoolRun", "run_pools"]

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

BLOCK = 512
_N_BLOCKS, _IDLE, _N_FAILED, _N_NOT_SERVED, _N_FLIPS, _FULL, _N_SPARE, _HELD, _BEGUN = range(9)
_POOL, _NEXT, _PREVIOUS, _N_FREE, _SPARE = range(5)


@dataclass(frozen=True)
class PoolRun:
    """What the pools did.

    Attributes:
        ns: [events] when.
        dest: [pages] page given, of symbolic block `dest // 512`; -1: not served, or of a request without events.
        idle: [events] free pages in all pools after each event.
        flip_event, flip_block, flip_in: [flips] blocks that came into a pool, or left one.
        flip_request: [flips] the request that brought it about, -1 for memory pressure.
        n_blocks: symbolic blocks. n_failed: blocks that were not to be had. n_not_served: requests that failed.
    """

    ns: Int64
    dest: Int64
    idle: Int64
    flip_event: Int64
    flip_block: Int64
    flip_in: Bools
    flip_request: Int64
    n_blocks: int
    n_failed: int
    n_not_served: int


def run_pools(
    event_request: Int64, event_is_free: Bools, event_ns: Int64, first: Int64, pool: Int64, host: Host, *,
    release_unused: bool, compacts: bool, hopeful: bool,
) -> PoolRun:  # fmt: skip
    """Serve a stream of allocations and frees.

    Args:
        event_request, event_is_free, event_ns, first: as `replay.unmapped_cache.run_cache` takes them.
        pool: [requests] pool of each, from 0.
        host: free blocks of order 9 and up, of which each block takes one; memory pressure.
        release_unused: all blocks of a pool go when none of its pages is in use, and none under pressure; otherwise
            wholly free ones go under pressure, as many as are asked for.
        compacts: a block is always to be had, by compaction if need be.
        hopeful: a block that left is what the next one to come is; False: it is always memory never met before.
    """
    subject, op, ns = with_shrinker(event_request, event_is_free, event_ns, host)
    available = np.full(len(ns), 1 << 40, np.int64)
    if len(host.free_ns) and not compacts:
        row = np.maximum(np.searchsorted(host.free_ns, ns, side="right") - 1, 0)
        available = host.free_blocks[row, 9] + 2 * host.free_blocks[row, 10]
    n_pools = int(pool.max(initial=0)) + 1
    flags = np.array([release_unused, hopeful], np.int64)
    dest = np.full(int(first[-1]), -1, np.int64)
    idle = np.zeros(len(op), np.int64)
    counters = np.zeros(9, np.int64)
    heads = np.full(n_pools, -1, np.int64)
    in_use = np.zeros(n_pools, np.int64)
    capacity = 16
    flips = np.zeros((3, capacity), np.int64)
    blocks = np.full((5, capacity), -1, np.int64)
    stacks = np.zeros(capacity * BLOCK, np.int32)
    event = 0
    while True:
        event = _serve(
            event,
            subject,
            op,
            first,
            pool,
            available,
            flags,
            dest,
            idle,
            flips,
            counters,
            blocks,
            stacks,
            heads,
            in_use,
        )
        if event == len(op):
            break
        if counters[_N_BLOCKS] > MAX_BLOCKS:
            raise too_many_blocks(int(counters[_N_BLOCKS]))
        if counters[_N_BLOCKS] == capacity:
            capacity = min(4 * capacity, MAX_BLOCKS + 1)
            blocks, stacks = longer(blocks, capacity, -1), longer(stacks, capacity * BLOCK)
        else:
            flips = longer(flips, 4 * int(counters[_N_FLIPS]))
    n = int(counters[_N_FLIPS])
    return PoolRun(
        ns=ns,
        dest=dest,
        idle=idle,
        flip_event=flips[0, :n],
        flip_block=flips[1, :n],
        flip_in=flips[2, :n] != 0,
        flip_request=np.where(op[flips[0, :n]] == SHRINK, -1, subject[flips[0, :n]]),
        n_blocks=int(counters[_N_BLOCKS]),
        n_failed=int(counters[_N_FAILED]),
        n_not_served=int(counters[_N_NOT_SERVED]),
    )


@kernel
def _link(block: int, pool: int, blocks: Int64, heads: Int64) -> None:
    head = heads[pool]
    blocks[_NEXT, block], blocks[_PREVIOUS, block] = head, -1
    if head >= 0:
        blocks[_PREVIOUS, head] = block
    heads[pool] = block


@kernel
def _unlink(block: int, pool: int, blocks: Int64, heads: Int64) -> None:
    after, before = blocks[_NEXT, block], blocks[_PREVIOUS, block]
    if before >= 0:
        blocks[_NEXT, before] = after
    else:
        heads[pool] = after
    if after >= 0:
        blocks[_PREVIOUS, after] = before


@kernel
def _flip(event: int, block: int, into: int, flags: Int64, flips: Int64, counters: Int64, blocks: Int64) -> None:
    at = counters[_N_FLIPS]
    flips[0, at], flips[1, at], flips[2, at] = event, block, into
    counters[_N_FLIPS] += 1
    counters[_IDLE] += 512 if into else -512
    counters[_HELD] += 1 if into else -1
    if not into and flags[1] != 0:
        blocks[_SPARE, counters[_N_SPARE]] = block
        counters[_N_SPARE] += 1


@kernel
def _new_block(
    event: int, pool: int, available: int, flags: Int64, flips: Int64, counters: Int64, blocks: Int64, stacks: Int32,
    heads: Int64,
) -> int:  # fmt: skip
    """Bring a block into the pool; -1: there is none, or no room to write down that it came, and that all go."""
    if available - counters[_HELD] < 1:
        counters[_N_FAILED] += 1
        return -1
    if counters[_N_BLOCKS] >= blocks.shape[1] or counters[_N_FLIPS] + counters[_HELD] + 2 > flips.shape[1]:
        counters[_FULL] = 1
        return -1
    if counters[_N_SPARE] > 0:
        counters[_N_SPARE] -= 1
        block = blocks[_SPARE, counters[_N_SPARE]]
    else:
        block = counters[_N_BLOCKS]
        counters[_N_BLOCKS] += 1
    blocks[_POOL, block], blocks[_N_FREE, block] = pool, 512
    for i in range(512):
        stacks[block * 512 + i] = 511 - i
    _link(block, pool, blocks, heads)
    _flip(event, block, 1, flags, flips, counters, blocks)
    return block  # type: ignore[no-any-return]


@kernel
def _back(page: int, counters: Int64, blocks: Int64, stacks: Int32, heads: Int64) -> None:
    block = page >> 9
    if blocks[_N_FREE, block] == 0:
        _link(block, blocks[_POOL, block], blocks, heads)
    stacks[block * 512 + blocks[_N_FREE, block]] = page & 511
    blocks[_N_FREE, block] += 1
    counters[_IDLE] += 1


@kernel
def _release(
    event: int, pool: int, n_pages: int, flags: Int64, flips: Int64, counters: Int64, blocks: Int64, heads: Int64
) -> None:
    """Wholly free blocks of a pool leave it, until `n_pages` have."""
    block = heads[pool]
    while block >= 0 and n_pages > 0:
        after = blocks[_NEXT, block]
        if blocks[_N_FREE, block] == 512:
            _unlink(block, pool, blocks, heads)
            _flip(event, block, 0, flags, flips, counters, blocks)
            n_pages -= 512
        block = after


@kernel
def _serve(
    event: int, subject: Int64, op: UInt8, first: Int64, pool: Int64, available: Int64, flags: Int64, dest: Int64,
    idle: Int64, flips: Int64, counters: Int64, blocks: Int64, stacks: Int32, heads: Int64, in_use: Int64,
) -> int:  # fmt: skip
    """Events from `event` on. Returns the one at which an array was too short: call again with longer ones, and it goes on there."""
    while event < len(op):
        if op[event] == SHRINK:
            if flags[0] == 0:
                for p in range(len(heads)):
                    _release(event, p, subject[event], flags, flips, counters, blocks, heads)
            idle[event] = counters[_IDLE]
            event += 1
            continue
        request = subject[event]
        p = pool[request]
        start, end = first[request], first[request + 1]
        stop = end
        if op[event] == ALLOC:
            i = start + counters[_BEGUN]
            counters[_BEGUN] = 0
            while i < end:
                block = heads[p]
                if block < 0:
                    block = _new_block(event, p, available[event], flags, flips, counters, blocks, stacks, heads)
                    if counters[_FULL] != 0:
                        counters[_FULL], counters[_BEGUN] = 0, i - start
                        return event
                    if block < 0:
                        break
                n = min(end - i, blocks[_N_FREE, block])
                left = blocks[_N_FREE, block] - n
                top = block * 512 + blocks[_N_FREE, block] - 1
                for j in range(n):
                    dest[i + j] = block * 512 + stacks[top - j]
                blocks[_N_FREE, block] = left
                if left == 0:
                    _unlink(block, p, blocks, heads)
                counters[_IDLE] -= n
                in_use[p] += n
                i += n
            if i < end:
                counters[_N_NOT_SERVED] += 1
            stop = i
        if op[event] == FREE or stop < end:
            for i in range(start, stop):
                if dest[i] >= 0:
                    _back(dest[i], counters, blocks, stacks, heads)
                    in_use[p] -= 1
                    if op[event] == ALLOC:
                        dest[i] = -1
            if flags[0] != 0 and in_use[p] == 0:
                _release(event, p, 1 << 60, flags, flips, counters, blocks, heads)
        idle[event] = counters[_IDLE]
        event += 1
    return event
