"""Grouped page allocations of April 2021: vmalloc's special pages from 2 MiB blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from collect.schema import RegionKind
from replay.cache_rules import BLOCK_ORDER, CacheRules, CacheRun
from replay.placement import SYMBOLIC, Host, Placement, Served, as_recorded
from replay.policies.base import VIEW, Outcome, Parameter, Policy
from replay.requests import Requests
from replay.unmapped_cache import run_cache

__all__ = ["Grouped"]


class Grouped(Policy):
    """Areas with VM_GROUP_PAGES take order-0 pages from a list that is refilled by whole 2 MiB blocks.

    Source: Rick Edgecombe, "[RFC 0/3] Group pages on the direct map for permissioned vmallocs", 2021-04-05,
    20210405203711.1095940-1-rick.p.edgecombe@intel.com.

    Mechanism: the page that came back last is used first. A miss takes one block of order 9, splits it into pages, and
    keeps 511; if there is none, one order-0 page that is not grouped, no order between. Pages are only placed: users
    change permissions as recorded. Pages that are freed go to the list, whether they came grouped or not. The shrinker
    gives single pages to the page allocator, mapped as they are. secretmem is no user, nor is what is mapped by 2M entries.

    Where pages that are not grouped lie is not in the trace; results span those that split nothing and one frame each.

    Not modelled: one list a node (one for all here); which page of the list the shrinker takes (the first here).
    """

    name = "grouped"
    title = "grouped vmalloc pages, RFC 2021"
    parameters: ClassVar[dict[str, Parameter]] = {"requests": VIEW}

    def place(self, requests: Requests, host: Host) -> Outcome:
        users = (requests.kind != RegionKind.SECRET_PAGE) & (requests.order == 0)
        if not users.any():
            return Outcome(
                [as_recorded(requests)],
                identity=True,
                caveats=["The trace holds no small vmalloc area: nothing to group."],
            )
        events = requests.events(users)
        plenty, scarce = host.between_readings()
        rules = CacheRules((BLOCK_ORDER, 0), False, hopeful=True)
        runs = [run_cache(*events, requests.first, requests.order, plenty, rules)]
        if len(host.pressure_ns) or host.readings_leave_open(runs[0].refill_order):
            runs.append(run_cache(*events, requests.first, requests.order, scarce, replace(rules, hopeful=False)))
        return Outcome(
            [_placed(requests, run, users) for run in runs],
            narrow=[host.not_told("a block")],
            caveats=["One list for the whole machine here; the RFC has one a node."] if host.n_nodes > 1 else [],
        )


def _placed(requests: Requests, run: CacheRun, users: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Placement:
    served = users.copy()
    served[requests.owner[run.dest < 0]] = False
    of_user = users[requests.owner]
    return Placement(
        dest=np.where(of_user, np.where(run.dest < 0, run.dest, SYMBOLIC + run.dest), requests.pfn),
        swallowed=users & ~served,
        state=np.where(served, Served.SERVED, np.where(users, Served.NOT_SERVED, Served.AS_RECORDED)).astype(np.uint8),
        n_blocks=run.n_blocks,
        in_pieces=run.in_pieces,
        idle_ns=run.ns,
        idle_pages=run.idle,
        refill_orders=run.refill_order,
        refill_failures=run.n_failed_refills,
        pages_released=int(np.left_shift(1, run.release_order).sum()),
    )
