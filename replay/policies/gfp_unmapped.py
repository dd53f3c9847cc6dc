"""The `__GFP_UNMAPPED` cache of the RFC of March 2023, as posted, with its flag mask repaired."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from collect.schema import HUGE_FRAME_PAGES, RegionKind
from replay.placement import INVALID_CLR, SYMBOLIC, Acts, Host, Placement
from replay.policies.base import Outcome, Policy
from replay.requests import Requests
from replay.unmapped_cache import BLOCK_ORDER, CacheRun, run_cache

__all__ = ["GfpUnmapped"]


class GfpUnmapped(Policy):
    """Special pages come from a global cache in the page allocator, refilled by 2 MiB blocks.

    Source: Mike Rapoport, "[RFC PATCH 0/5] Prototype for direct map awareness in page allocator", 2023-03-08,
    20230308094106.227365-1-rppt@kernel.org, patches 1/5 to 5/5. "As posted" with one repair: `__GFP_BITS_SHIFT` cuts
    the new flag off without LOCKDEP, so that literally as posted nothing happens at all.

    Mechanism:
        * Lists: see `replay.unmapped_cache`.
        * A refill unmaps, one page a call, only as many pages as the request asked for (the loop runs to the
          request's order, not the refill's). The first such call splits the block's 2M entry.
        * Users (4/5, 5/5): an area of n pages of module_alloc or execmem is n requests of order 0; where the recorded
          kernel maps by 2M entries (a ROX block) each is one request of order 9; a secret page is one of order 0.
        * secretmem's own unmapping and mapping are deleted by 5/5, so those recorded changes do not happen.
        * Whatever else users do to their pages (read-only, reset on vfree) is carried over to the cache's pages.
        * A freed page goes back to the cache, because the bit of its pageblock is set.

    Not modelled: the shrinker (3/5) is never driven, nothing says in a trace when it would have been; absorption of
    neighbours' pages in blocks of a refill below order 9; merging to order 10 across two refills; the races between
    allocation and shrinker; who waits in reclaim for an order-9 block.
    """

    name = "gfp-unmapped"
    title = "__GFP_UNMAPPED RFC 2023, mask repaired"
    parameters: ClassVar[dict[str, str]] = {
        "refill order": "9 (2 MiB), then each order below down to the request's",
        "unmap at refill": "the request's pages only, one page a call (as posted)",
        "shrinker": "never driven",
    }

    def place(self, requests: Requests, host: Host) -> Outcome:
        which = np.ones(len(requests), np.bool_)
        event_request, is_free, event_ns = requests.events(which)
        run = run_cache(
            event_request, is_free, event_ns, requests.first, requests.order, host.free_ns, host.free_blocks
        )
        served = np.ones(len(requests), np.bool_)
        failed = run.dest < 0
        served[requests.owner()[failed]] = False
        secret = requests.kind == RegionKind.SECRET_PAGE
        placement = Placement(
            dest=np.where(failed, run.dest, SYMBOLIC + run.dest),
            swallowed=secret | ~served,
            n_blocks=len(run.refill_order),
            in_pieces=run.refill_order < BLOCK_ORDER,
            acts=_unmap_at_refill(run, event_ns),
            idle_ns=event_ns,
            idle_pages=run.idle,
            refill_orders=run.refill_order,
            refill_failures=run.n_failed_refills,
            served=int(np.count_nonzero(served)),
            not_served=int(np.count_nonzero(~served)),
            pages_unmapped=int(np.left_shift(1, run.refill_request_order).sum()),
        )
        return Outcome([placement], identity=len(requests) == 0, caveats=_caveats(run, host), narrow=_narrow(run))


def _unmap_at_refill(run: CacheRun, event_ns: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Acts:
    """One-page calls of set_direct_map_invalid_noflush on the request's pages, then one flush of that range (1/5)."""
    n_pages = np.left_shift(1, run.refill_request_order)
    n = len(n_pages)
    return Acts(
        ts_ns=event_ns[run.refill_event],
        place=SYMBOLIC + np.arange(n, dtype=np.int64) * HUGE_FRAME_PAGES,
        n_pages=n_pages,
        mask_set=np.zeros(n, np.uint64),
        mask_clr=np.full(n, INVALID_CLR, np.uint64),
        n_calls=n_pages,
        n_call_flushes=np.zeros(n, np.int64),
        n_range_flushes=np.ones(n, np.int64),
    )


def _caveats(run: CacheRun, host: Host) -> list[str]:
    caveats = [
        "The shrinker is never driven: nothing in the trace says when it would have run. It gives pages back one by "
        "one and never restores a 2M entry (RFC 3/5), so it could only add splits.",
        "As posted, a refill takes only the requested page out of the direct map; the other pages of the block are "
        "handed out still mapped. So this counts splits, not isolation.",
        "Cache operations are atomic here; in the posted patch allocation and shrinker race.",
    ]
    if not len(host.free_ns):
        caveats.append("The trace holds no counts of free blocks: every refill is taken to get order 9.")
    small = int(np.count_nonzero(run.refill_order < BLOCK_ORDER))
    if small:
        caveats.append(
            f"{small} refills got less than order 9; pages of their neighbours, which the sticky block bit would "
            "draw into the cache as they are freed, are not modelled, so later refills may be overcounted."
        )
    return caveats


def _narrow(run: CacheRun) -> list[str]:
    if not len(run.refill_order):
        return []
    return [
        "Where a refill would have landed is not in the trace: an intact 2M frame counts as one more split, one that "
        "was split before as none. A recording with --pages all would tell which frames were free."
    ]
