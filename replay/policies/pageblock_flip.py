"""The page allocator's own unmapped lists, as proposed in 2026."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from collect.schema import RegionKind
from replay.block_pools import run_pools
from replay.placement import Host, as_recorded
from replay.policies.base import Outcome, Parameter, Policy
from replay.requests import Requests
from replay.whole_blocks import placed

__all__ = ["PageblockFlip"]


class PageblockFlip(Policy):
    """Whole pageblocks are flipped between mapped and unmapped inside the page allocator.

    Source: Brendan Jackman, "mm: page_alloc: unmapped allocations", RFC of 2026-02-25, v2 of 2026-03-20
    (20260320-page_alloc-unmapped-v2-0-28bf1bd54f41@google.com); v3 and v4 for compaction.

    Mechanism: free lists are by migratetype and by whether their pages are mapped. A miss takes one whole free pageblock,
    unmaps it by one call, and flushes its range once; no smaller order. Freed pages stay unmapped. Where memory is short,
    a wholly free unmapped block is flipped back by one call. Users are the owners of AS_NO_DIRECT_MAP page cache: secret
    pages, which then change nothing by themselves. So no 2M entry is ever split; a 1G entry is.

    Not modelled: lists a zone, a node and a CPU; mermap, the short mapping for zeroing; how long compaction takes.
    """

    name = "pageblock-flip"
    title = "pageblock flip in the allocator (2026)"
    parameters: ClassVar[dict[str, Parameter]] = {
        "compaction": Parameter(
            "always",
            "when no whole block is free: compaction always makes one (v3 and v4 try), never (v2), or nobody knows (maybe)",
            ("always", "maybe", "never"),
        )
    }

    def place(self, requests: Requests, host: Host) -> Outcome:
        users = requests.kind == RegionKind.SECRET_PAGE
        if not users.any():
            return Outcome(
                [as_recorded(requests)], identity=True, caveats=["The trace holds no secret page: nothing to flip."]
            )
        ways = {"always": (True,), "never": (False,), "maybe": (True, False)}[self.word("compaction")]
        placements = []
        plenty, scarce = host.between_readings()
        for compacts in ways:
            lacks = not compacts and host.readings_leave_open(np.full(1 + int(np.count_nonzero(users)) // 512, 9))
            for hopeful in (True, False) if len(host.pressure_ns) or lacks else (True,):
                run = run_pools(
                    *requests.events(users), requests.first, np.zeros(len(requests), np.int64), plenty if hopeful else scarce,
                    release_unused=False, compacts=compacts, hopeful=hopeful,
                )  # fmt: skip
                placements.append(placed(requests, run, users))
        return Outcome(
            placements,
            caveats=["Only secret pages are served; modules and BPF go on as recorded."],
            narrow=["Where a block would have lain, and so which 1G entries it splits, is not in the trace."],
        )
