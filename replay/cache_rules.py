"""How a page cache behaves, and what it did: the rules and the result of `replay.unmapped_cache`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK_ORDER", "CacheRules", "CacheRun"]

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BLOCK_ORDER = 9


@dataclass(frozen=True)
class CacheRules:
    """How the cache behaves.

    Attributes:
        orders: refill orders that are tried, highest first, none below the request's.
        merge: freed chunks merge with their buddies; False: the cache holds order-0 pages only.
        descending: the shrinker takes the largest chunks first.
        clear_bit: the shrinker clears the block's bit with any chunk that it gives back, not only with order 9, so that
            what else of the block is freed goes back to the page allocator.
        hopeful: where the trace leaves it open, all goes well: a block given back whole is what the next refill gets; pages
            given back while the bit of their block is set are freed at once by whoever takes them, and so come back; and
            when a refill gets less than a block, its neighbours are freed at once and join. False: none of it ever.
    """

    orders: tuple[int, ...] = tuple(range(BLOCK_ORDER, -1, -1))
    merge: bool = True
    descending: bool = False
    clear_bit: bool = False
    hopeful: bool = False


@dataclass(frozen=True)
class CacheRun:
    """What the cache did with a stream of requests and calls of its shrinker.

    Attributes:
        ns: [events] when.
        dest: [pages] page of the cache given to each page of each request, -1 where the request was not served.
        idle: [events] free pages in the cache after each event.
        refill_event, refill_order, refill_request_order, refill_block, refill_request: [refills] the event that caused it, the order that
            the page allocator gave, the order that was asked for, the symbolic block.
        release_event, release_page, release_order: [releases] chunks that the shrinker gave back.
        n_blocks: symbolic blocks; `in_pieces`: [blocks] it stands for less than 2 MiB.
        n_failed_refills: refills that got no block of any order.
        n_not_served: requests that failed.
        n_absorbed: pages that joined the cache without a refill (see `CacheRules.hopeful`).
        free_pages: pages on the lists at the end, every one, ascending.
        out: [blocks] pages of the block that went back to the page allocator.
    """

    ns: Int64
    dest: Int64
    idle: Int64
    refill_event: Int64
    refill_order: Int64
    refill_request_order: Int64
    refill_block: Int64
    refill_request: Int64
    release_event: Int64
    release_page: Int64
    release_order: Int64
    n_blocks: int
    in_pieces: Bools
    n_failed_refills: int
    n_not_served: int
    n_absorbed: int
    free_pages: Int64
    out: Int64
