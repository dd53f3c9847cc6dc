"""Free lists of chunks of 2^order pages, each last-in first-out, over flat arrays: compiled, for `replay.unmapped_cache`.

`heads`: [orders] first chunk of each list. `links`: [2, pages] the next and the previous chunk, at a chunk's first page.
`chunk_order`: [pages] the order of the free chunk that begins there, -1 for none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analyze.jit import kernel, signed

__all__ = ["insert", "insert_run", "push", "push_pages", "smallest", "take_run", "unlink"]

Int32 = npt.NDArray[np.int32]
Int8 = npt.NDArray[np.int8]


@kernel
def push(page: int, order: int, heads: Int32, links: Int32, chunk_order: Int8) -> None:
    """Put a chunk at the head of its order's list."""
    head = heads[order]
    links[0, page] = head
    links[1, page] = -1
    if head >= 0:
        links[1, head] = page
    heads[order] = page
    chunk_order[page] = order


@kernel
def unlink(page: int, order: int, heads: Int32, links: Int32, chunk_order: Int8) -> None:
    """Take a chunk out of its list."""
    after, before = links[0, page], links[1, page]
    if before >= 0:
        links[0, before] = after
    else:
        heads[order] = after
    if after >= 0:
        links[1, after] = before
    chunk_order[page] = -1


@kernel
def smallest(order: int, heads: Int32) -> int:
    """The lowest order from `order` on whose list has a chunk; -1 if there is none."""
    for k in range(order, len(heads)):
        if heads[k] >= 0:
            return k
    return -1


@kernel
def take_run(k: int, n: int, heads: Int32, links: Int32, chunk_order: Int8) -> int:
    """The first `n` pages, at most 2^k, of the first chunk of order `k`; what is left of it goes back, in chunks.

    Where `k` is the lowest order that has a chunk, it is as if single pages were taken `n` times: each time the smallest chunk is
    split down and its lowest part kept, so that the next page is the one that follows.
    """
    page = signed(heads[k])
    unlink(page, k, heads, links, chunk_order)
    at, end = page + n, page + (1 << k)
    while at < end:  # in a chunk, which is aligned, the lowest bit says how large a part begins here
        order = 0
        while at >> order & 1 == 0:
            order += 1
        push(at, order, heads, links, chunk_order)
        at += 1 << order
    return page


@kernel
def insert(page: int, order: int, heads: Int32, links: Int32, chunk_order: Int8) -> None:
    """Put a chunk back, merged with its buddy as often as that is free and of the same order."""
    while order < 9:
        buddy = page ^ (1 << order)
        if chunk_order[buddy] != order:
            break
        unlink(buddy, order, heads, links, chunk_order)
        page = min(page, buddy)
        order += 1
    push(page, order, heads, links, chunk_order)


@kernel
def insert_run(page: int, n: int, heads: Int32, links: Int32, chunk_order: Int8) -> None:
    """Put back `n` pages of one block, as if one by one: what is whole within them merges with nothing else before that."""
    end = page + n
    while page < end:
        order = 0
        while order < 9 and page >> order & 1 == 0 and page + (2 << order) <= end:
            order += 1
        insert(page, order, heads, links, chunk_order)
        page += 1 << order


@kernel
def push_pages(page: int, n: int, heads: Int32, links: Int32, chunk_order: Int8) -> None:
    """Put `n` pages on the list of single pages, the first one first out."""
    for i in range(n - 1, -1, -1):
        push(page + i, 0, heads, links, chunk_order)
