"""execmem's ROX cache: module text, kprobe slots and ftrace trampolines from 2 MiB blocks that are read-only."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from analyze.jit import kernel
from collect.schema import HUGE_FRAME_PAGES, Pte
from replay.page_runs import runs_of
from replay.placement import GONE, INVALID_CLR, SYMBOLIC, Acts, Host, Placement, Served, as_recorded
from replay.policies.base import VIEW, Outcome, Parameter, Policy
from replay.prog_packs import PackRun, run_packs
from replay.requests import NEVER, Requests
from replay.users import User

__all__ = ["RoxCache"]

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_RW, _GONE = int(Pte.RW), GONE
_USERS = (User.MODULE, User.KPROBE, User.FTRACE)


class RoxCache(Policy):
    """The pages of an area that become executable come from a shared read-only block; its data stays as recorded.

    Source: Mike Rapoport, "x86/module: use large ROX pages for text allocations" v7, 2024-10-23
    (20241023162711.2579610-1-rppt@kernel.org; merged in 6.13, disabled before its release by a9bbe3413331, back in 6.15 with
    64f6a4e10c05); mm/execmem.c. Trampolines and kprobe slots since 20250713071730.4117334-1-rppt@kernel.org.

    Mechanism: a free range of pages is taken first fit. A miss takes one block of 2 MiB; where there is none, ordinary pages
    (as recorded here). One call makes the block read-only, which leaves its 2M entry one entry. Whoever fills a range
    makes it writable and read-only again (execmem_force_rw, execmem_restore_rox), page by page in the direct map, and
    so does who frees it: the first such call splits the entry, and nothing mends it. A block that is wholly free is
    given back at once and mapped as before by one call (execmem_cache_clean). BPF and data do not use the cache.

    Not in the trace: what room a block from before has (the kernel's own first modules made one). Expected: all of it but what
    `old-block-used` says, and new blocks in frames that are not split. Results span a block whose frame had been split
    before, and a cache that has no room at the start.

    Not modelled: requests above 2 MiB (as recorded), which take several blocks; blocks side by side that merge.
    """

    name = "rox-cache"
    title = "execmem's ROX cache (Linux 6.15)"
    parameters: ClassVar[dict[str, Parameter]] = {
        "old-block": Parameter(
            "maybe",
            "whether a block from before the recording has room for its text: yes, no, or nobody knows",
            ("maybe", "yes", "no"),
        ),
        "old-block-used": Parameter(
            220,
            "what is in that block before; on Debian's 7.2 in a guest the first free pages were its 221st and later ones (sample "
            "7.2-churn)",
            highest=HUGE_FRAME_PAGES,
            unit="pages",
        ),
        "requests": VIEW,
    }

    def place(self, requests: Requests, host: Host) -> Outcome:
        if requests.has_rox and not self.as_asked:
            return Outcome(
                [as_recorded(requests)], identity=True, caveats=["The recorded kernel already has a ROX cache."]
            )
        owner = requests.owner
        text = requests.text & np.isin(requests.user, _USERS)[owner]
        n_text = np.bincount(owner[text], minlength=len(requests)).astype(np.int64)
        users = (n_text > 0) & (n_text <= HUGE_FRAME_PAGES)
        if not users.any():
            return Outcome(
                [as_recorded(requests)],
                identity=True,
                caveats=["The trace holds no module, kprobe or ftrace code: nothing to cache."],
            )
        old = self.word("old-block")
        maybe = old == "maybe"
        known = None if old == "no" else self.number("old-block-used")
        placements = [_placed(requests, host, users, text, n_text, old_used=known, apart=maybe)]
        if maybe:  # nothing is known of where a block lies at this end
            placements.append(_placed(requests, host, users, text, n_text, old_used=None))
        return Outcome(
            placements,
            expected=0 if maybe else None,
            caveats=[
                "Expected: a block from before the recording, split already, has "
                f"{HUGE_FRAME_PAGES - self.number('old-block-used')} free pages, and new ones lie in frames of their own. Other "
                "end: none from before has room; new ones may lie where a frame was split before."
            ]
            if maybe
            else [],
            narrow=["The same load recorded on a kernel with the cache tells how full its blocks are."],
        )


def _placed(
    requests: Requests,
    host: Host,
    users: Bools,
    text: Bools,
    n_text: Int64,
    *,
    old_used: int | None,
    apart: bool = False,
) -> Placement:
    """One way it may have gone; `text`: [pages], `n_text`: [requests] pages that go into the cache.

    `old_used`: pages in use in a block from before, None: there is none. `apart`: see `Placement`.
    """
    event_request, is_free, ns = requests.events(users)
    run = run_packs(event_request, is_free, n_text, HUGE_FRAME_PAGES, old_used=old_used, may_make=host.has_block(ns))
    if not len(run.made_event):
        return as_recorded(requests)
    cached = users & (run.pack >= 0)
    is_new: Bools = np.asarray(run.made_event >= 0, np.bool_)
    block: Int64 = np.cumsum(is_new) - 1  # symbolic block of each that was made; the one from before has none
    dest = requests.pfn.copy()
    place = np.full(len(dest), GONE, np.int64)
    start: Int64 = np.asarray(block[run.pack] * HUGE_FRAME_PAGES + run.start)  # of each request, in the symbolic blocks
    start = np.where(is_new[run.pack], SYMBOLIC + start, -1)
    _put(requests.first, text, cached, start, dest, place)
    n_freed_pages = int(n_text[cached & (requests.end_ns != NEVER)].sum())
    return Placement(
        dest=dest,
        swallowed=np.zeros(len(requests), np.bool_),
        state=np.where(cached, Served.SERVED, Served.AS_RECORDED).astype(np.uint8),
        n_blocks=int(np.count_nonzero(run.made_event >= 0)),
        apart=apart,
        acts=Acts.joined(_of_blocks(run, ns, block), _of_areas(requests, place, cached)),
        idle_ns=ns,
        idle_pages=run.n_live * HUGE_FRAME_PAGES - run.used_chunks,
        refill_orders=np.full(int(np.count_nonzero(run.made_event >= 0)), 9, np.int64),
        n_calls_saved=2 * n_freed_pages,  # of vfree's reset
    )


@kernel
def _put(first: Int64, text: Bools, cached: Bools, start: Int64, dest: Int64, place: Int64) -> None:
    """Give the pages of `text` of the requests `cached` their places, side by side from `start`; in the block from before none.

    They are changed by the acts below, not as recorded.
    """
    for request in range(len(cached)):
        if not cached[request]:
            continue
        next_page = start[request]
        for i in range(first[request], first[request + 1]):
            if text[i]:
                dest[i] = _GONE
                if next_page >= 0:
                    place[i] = next_page
                    next_page += 1


def _of_blocks(run: PackRun, ns: Int64, block: Int64) -> Acts:
    """set_memory_rox on a new block; set_direct_map_valid_noflush on one that goes."""
    made = run.made_event >= 0
    gone = made & (run.gone_event >= 0)
    place = SYMBOLIC + block * HUGE_FRAME_PAGES
    return Acts.joined(
        Acts.of(
            ns[run.made_event[made]] - 1, place[made], HUGE_FRAME_PAGES, whole=True, mask_clr=_RW, n_calls=1, n_call_flushes=1
        ),
        Acts.of(
            ns[run.gone_event[gone]] + 3, place[gone], HUGE_FRAME_PAGES, whole=True, mask_set=INVALID_CLR, n_calls=1,
            n_range_flushes=1,
        ),
    )  # fmt: skip


def _of_areas(requests: Requests, place: Int64, cached: Bools) -> Acts:
    """Writable and read-only again, at first use and at the free.

    Calls are those of the area besides its recorded ones: at first use nx and rw (its rox is recorded, as ro and x or as
    rox); at the free rw, nx and rox.
    """
    runs = runs_of(requests, place, cached)
    freed = runs.freed
    return Acts.joined(
        Acts.of(
            runs.begin_ns, runs.place, runs.n_pages, mask_set=_RW, n_calls=2 * runs.is_first,
            n_call_flushes=2 * runs.is_first, user=runs.user,
        ),
        Acts.of(runs.begin_ns + 1, runs.place, runs.n_pages, mask_clr=_RW, user=runs.user),
        Acts.of(
            freed.end_ns + 1, freed.place, freed.n_pages, mask_set=_RW, n_calls=3 * freed.is_first,
            n_call_flushes=3 * freed.is_first, user=freed.user,
        ),
        Acts.of(freed.end_ns + 2, freed.place, freed.n_pages, mask_clr=_RW, user=freed.user),
    )  # fmt: skip
