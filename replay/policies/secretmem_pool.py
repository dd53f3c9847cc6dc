"""secretmem's own pool of 2 MiB blocks, versions 2 to 16 of its series."""

from __future__ import annotations

import numpy as np

from collect.schema import RegionKind
from replay.block_pools import run_pools
from replay.placement import Host, as_recorded
from replay.policies.base import Outcome, Policy
from replay.requests import Requests
from replay.whole_blocks import placed

__all__ = ["SecretmemPool"]


class SecretmemPool(Policy):
    """A memfd_secret file takes its pages from blocks of 2 MiB that are its own.

    Source: Mike Rapoport, "mm: introduce memfd_secret system call", versions 2 to 16 (dropped in 17, 2021, before it
    was merged in 5.14).

    Mechanism: a file's pool grows by one block (in version 16 out of memory reserved at boot). One call takes all
    512 pages out of the direct map, which leaves a 2M entry one entry, and its range is flushed. A failure fails the fault;
    no smaller order is tried. Freed pages go back to the pool; when the file goes, one call a block puts them back.

    Not in the trace: which file a page belongs to. Results span one pool for all and one for each thread that faulted. A file is
    taken to go when none of its pages is in use.

    Not modelled: the reservation at boot, so a block comes from free memory.
    """

    name = "secretmem-pool"
    title = "secretmem's pool of 2M blocks (2020-21)"

    def place(self, requests: Requests, host: Host) -> Outcome:
        users = requests.kind == RegionKind.SECRET_PAGE
        if not users.any():
            return Outcome(
                [as_recorded(requests)], identity=True, caveats=["The trace holds no secret page: nothing to pool."]
            )
        one = np.zeros(len(requests), np.int64)
        thread = one.copy()
        thread[users] = np.unique(requests.alloc_pid[users], return_inverse=True)[1].reshape(-1)
        events = requests.events(users)
        plenty, scarce = host.without_pressure().between_readings()
        runs = [
            run_pools(
                *events, requests.first, pool, there,
                release_unused=True, compacts=False, hopeful=hopeful,
            )
            for pool, there, hopeful in ((one, plenty, True), (thread, scarce, False))
        ]  # fmt: skip
        return Outcome(
            [placed(requests, run, users) for run in runs],
            caveats=[
                "Lower bound: one pool for all secret memory; upper bound: one for each thread that faulted it in."
            ],
            narrow=["A recording that names the file behind each secret page."],
        )
