"""No cache at all, not even those that the recorded kernel has."""

from __future__ import annotations

from math import log2
from typing import ClassVar

import numpy as np

from collect.schema import HUGE_FRAME_PAGES
from replay.cache_rules import CacheRules
from replay.placement import SYMBOLIC, Host, Placement, Served, as_recorded
from replay.policies.base import Outcome, Parameter, Policy
from replay.requests import Life, Requests
from replay.spread import spread
from replay.unmapped_cache import run_cache

__all__ = ["Ungrouped"]


class Ungrouped(Policy):
    """Each image and each area on pages of its own, as in Linux 5.10.

    Source: kernel/bpf/core.c (bpf_jit_binary_alloc) and kernel/module.c of 5.10; Linux 6.12 for areas of execmem.

    Mechanism: what had frames of its own keeps them. An image out of a pack gets pages of its own, is made read-only and
    executable, and reset when it is freed; an area cut from a ROX block gets pages of its own, with its recorded
    changes, and is reset when it is freed. Packs and blocks are not there.

    Where those pages would have lain is not in the trace: results span frames that were split anyway, and new frames as
    densely filled as by the single pages that the recorded kernel did allocate.
    """

    name = "ungrouped"
    title = "no packs, no ROX cache (Linux 5.10)"
    parameters: ClassVar[dict[str, Parameter]] = {
        "requests": Parameter(
            "asked", "what is served; see other policies (there is nothing else to do here)", ("asked",)
        )
    }

    def place(self, requests: Requests, host: Host) -> Outcome:
        moved = (requests.life == Life.IMAGE) | (requests.life == Life.AREA)
        if not moved.any():
            return Outcome(
                [as_recorded(requests)],
                identity=True,
                caveats=["The recorded kernel had no cache in use: nothing to take away."],
            )
        owner = requests.owner
        single = requests.pfn[(requests.life == Life.RECORDED)[owner] & (requests.order == 0)[owner]]
        frames = spread(single, HUGE_FRAME_PAGES)
        order = int(log2(HUGE_FRAME_PAGES // frames))  # pages a frame
        run = run_cache(
            *requests.events(moved), requests.first, requests.order, host.without_pressure(),
            CacheRules((order,), merge=False),
        )  # fmt: skip
        served = moved.copy()
        served[owner[(run.dest < 0) & moved[owner]]] = False
        placement = Placement(
            dest=np.where(moved[owner], np.where(run.dest < 0, run.dest, SYMBOLIC + run.dest), requests.pfn),
            swallowed=moved & ~served,
            state=np.where(served, Served.SERVED, np.where(moved, Served.NOT_SERVED, Served.AS_RECORDED)).astype(
                np.uint8
            ),
            n_blocks=run.n_blocks,
            in_pieces=np.ones(run.n_blocks, np.bool_),
        )
        return Outcome(
            [placement],
            caveats=[
                f"Pages that the recorded kernel took from its caches would fill new frames with {1 << order} pages each at most "
                "(the density of its other single pages), or lie in frames that were split anyway."
            ],
            narrow=["The same load recorded on a kernel without these caches."],
        )
