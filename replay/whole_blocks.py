"""Placement of what `replay.block_pools` served: blocks that are unmapped and mapped as a whole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from collect.schema import HUGE_FRAME_PAGES
from replay.block_pools import PoolRun
from replay.placement import INVALID_CLR, NOBODY, SYMBOLIC, Acts, Placement, Served
from replay.requests import Requests

__all__ = ["placed"]

ORDER = 9


def placed(requests: Requests, run: PoolRun, users: npt.NDArray[np.bool_]) -> Placement:
    """The requests `users` in the pools' blocks, the rest as recorded. One call a block, and one ranged flush."""
    own = np.flatnonzero(users[requests.owner])
    place = run.dest[own]
    served = users.copy()
    served[requests.owner[own[place < 0]]] = False
    dest = requests.pfn.copy()
    dest[own] = np.where(place < 0, place, SYMBOLIC + place)
    came = run.flip_in
    n_in = int(np.count_nonzero(came))
    acts = Acts.of(
        run.ns[run.flip_event],
        SYMBOLIC + run.flip_block * HUGE_FRAME_PAGES,
        HUGE_FRAME_PAGES,
        whole=True,
        mask_set=np.where(came, 0, INVALID_CLR).astype(np.uint64),
        mask_clr=np.where(came, INVALID_CLR, 0).astype(np.uint64),
        n_calls=1,
        n_range_flushes=came.astype(np.int64),
        user=np.append(requests.user, NOBODY)[run.flip_request],
    )
    return Placement(
        dest=dest,
        swallowed=users,
        state=np.where(served, Served.SERVED, np.where(users, Served.NOT_SERVED, Served.AS_RECORDED)).astype(np.uint8),
        n_blocks=run.n_blocks,
        acts=acts,
        idle_ns=run.ns,
        idle_pages=run.idle,
        refill_orders=np.full(n_in, ORDER, np.int64),
        refill_failures=run.n_failed,
        pages_unmapped=n_in * HUGE_FRAME_PAGES,
        pages_released=int(np.count_nonzero(~came)) * HUGE_FRAME_PAGES,
    )
