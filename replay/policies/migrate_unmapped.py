"""The migratetype MIGRATE_UNMAPPED of January 2022."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from collect.schema import HUGE_FRAME_PAGES, RegionKind
from replay.cache_rules import CacheRules, CacheRun
from replay.page_runs import runs_of
from replay.placement import INVALID_CLR, SYMBOLIC, Acts, Host, Placement, Served
from replay.policies.base import VIEW, Outcome, Parameter, Policy
from replay.requests import Requests
from replay.unmapped_cache import run_cache

__all__ = ["MigrateUnmapped"]


class MigrateUnmapped(Policy):
    """Special pages have a migratetype of their own inside the buddy allocator.

    Source: Mike Rapoport, 2022-01-27, 20220127085608.306306-1-rppt@kernel.org (branch gfp-unmapped/v0).

    Mechanism: a request is served from the free lists of its type. Where they are empty the allocator takes the
    largest free block of another type, splits the 2M entry of its pageblock (invalid and default on one page),
    retypes the pageblock, and moves all its free pages to these lists. Free pages stay mapped, by 4K entries; each
    allocation is taken out of the direct map and its range flushed, each free puts it back. secretmem leaves both to
    the allocator. What else users do to their pages is carried over.

    Where the largest block is below 2 MiB, the rest of its pageblock joins as far as it is free: results span all of it and
    none.

    Not modelled: lists a zone and a node (one here); fallback of other types into this one, its last resort, which would
    take pages away; bulk allocation, which it did not support: n pages are n requests here.
    """

    name = "migrate-unmapped"
    title = "MIGRATE_UNMAPPED RFC 2022"
    parameters: ClassVar[dict[str, Parameter]] = {"requests": VIEW}

    def place(self, requests: Requests, host: Host) -> Outcome:
        events = requests.events(np.ones(len(requests), np.bool_))
        plenty, scarce = host.without_pressure().between_readings()
        runs = [run_cache(*events, requests.first, requests.order, plenty, CacheRules(hopeful=True))]
        if runs[0].in_pieces.any() or host.readings_leave_open(runs[0].refill_order):
            runs.append(run_cache(*events, requests.first, requests.order, scarce, CacheRules()))
        return Outcome(
            [self._placed(requests, run) for run in runs],
            identity=len(requests) == 0,
            caveats=[
                "Other types never fall back into this one here; where memory is short they would, and take its pages."
            ],
            narrow=[host.not_told("a pageblock that changes its type")] if len(runs[0].refill_order) else [],
        )

    def _placed(self, requests: Requests, run: CacheRun) -> Placement:
        served = np.ones(len(requests), np.bool_)
        served[requests.owner[run.dest < 0]] = False
        dest = np.where(run.dest < 0, run.dest, SYMBOLIC + run.dest)
        block = SYMBOLIC + run.refill_block * HUGE_FRAME_PAGES
        when, whose = run.ns[run.refill_event], requests.user[run.refill_request]
        given = runs_of(requests, dest, served)
        by_page = np.where(requests.order[given.request] == 9, given.n_pages // HUGE_FRAME_PAGES, given.n_pages)
        back = given.freed
        acts = Acts.joined(
            Acts.of(when, block, 1, mask_clr=INVALID_CLR, n_calls=1, user=whose),
            Acts.of(when, block, 1, mask_set=INVALID_CLR, n_calls=1),
            Acts.of(
                given.begin_ns, given.place, given.n_pages, mask_clr=INVALID_CLR, n_calls=given.n_pages,
                n_range_flushes=by_page, user=given.user,
            ),
            Acts.of(
                back.end_ns + 2, back.place, back.n_pages, mask_set=INVALID_CLR, n_calls=back.n_pages, user=back.user
            ),
        )  # fmt: skip
        return Placement(
            dest=dest,
            swallowed=(requests.kind == RegionKind.SECRET_PAGE) | ~served,
            state=np.where(served, Served.SERVED, Served.NOT_SERVED).astype(np.uint8),
            n_blocks=run.n_blocks,
            in_pieces=run.in_pieces,
            acts=acts,
            idle_ns=run.ns,
            idle_pages=run.idle,
            refill_orders=run.refill_order,
            refill_failures=run.n_failed_refills,
            pages_unmapped=int(given.n_pages.sum()),
        )
