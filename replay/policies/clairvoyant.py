"""A bound that no policy can beat, and a packing that comes as near as one can that knows the future."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from collect.schema import HUGE_FRAME_PAGES, Pte, RegionKind
from replay.cache_rules import CacheRules
from replay.placement import GONE, SYMBOLIC, Acts, Host, Placement, Served
from replay.policies.base import Outcome, Parameter, Policy
from replay.requests import NEVER, Requests
from replay.unmapped_cache import run_cache
from replay.users import User

__all__ = ["Clairvoyant", "unavoidable_pages"]

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_PCD = int(Pte.PCD)
_DONE_AWAY = (User.BPF, User.SECRETMEM)
"""Users of whom a policy is known that changes nothing page by page (packs; pools of whole blocks)."""


class Clairvoyant(Policy):
    """Results are intervals of another sort: below the lower end no policy can get; the upper end has been reached.

    Lower bounds. Changes on pages that no request owns happen under every policy, and so do the splits they make. All else
    a policy may save, with one exception: pages of an area of which a part is changed page by page and whose users leave it
    no other way (data of modules, reset by vfree page by page; `unavoidable_pages`). At each moment these lie in frames that are
    split, at most 512 in one. Those that do not find room among the ordinary pages of frames that were split at the start
    need further frames: at least (most such pages at once - room) / 512. Text of modules, kprobes and ftrace may lie in
    ROX blocks from before; BPF images in packs; secret pages in blocks that are unmapped whole: none of them forces a split.
    `old-frames=left` takes it that frames split before have no room, which holds for policies that take whole free blocks.

    Upper end. One pool of pages with the lowest free page first, refilled by whole blocks, serves all requests with a peak
    of p pages from ceil(p / 512) blocks: pages are all alike, so no knowledge of the future packs them more tightly.
    Secret pages lie in blocks of their own that are unmapped whole.

    Not modelled: that room in frames split before may be taken by others; the lower bound leaves it free, so it is proved.
    """

    name = "clairvoyant"
    title = "bound that no policy can beat"
    parameters: ClassVar[dict[str, Parameter]] = {
        "old-frames": Parameter(
            "used", "whether frames split before the recording may take special pages", ("used", "left")
        )
    }

    def place(self, requests: Requests, host: Host) -> Outcome:
        forced = unavoidable_pages(requests)
        peak = _most_at_once(requests, forced)
        room = int(host.room.sum()) if self.word("old-frames") == "used" else 0
        n_frames = max(0, -(-(peak - room) // HUGE_FRAME_PAGES))
        return Outcome(
            [_floor(requests, n_frames), _floor(requests, n_frames, merged=True), _packing(requests, host)],
            identity=len(requests) == 0,
            caveats=[
                f"At most {peak} pages at once must lie in split frames under any policy; frames split before the recording "
                f"have {room} ordinary pages, so {n_frames} more frames are proved to be needed. Upper end: a packing that "
                "serves every request."
            ],
            narrow=["A recording with --pages all tells how many pages in frames that were split before are free."],
        )


def unavoidable_pages(requests: Requests) -> Bools:
    """[pages] those that no policy known here keeps from being changed page by page: data of areas, reset when freed."""
    small = (requests.order == 0) & ~np.isin(requests.user, _DONE_AWAY)
    forced: Bools = small[requests.owner] & ~requests.text & requests.reset
    return forced


def _most_at_once(requests: Requests, which: Bools) -> int:
    """Most pages `which` in use at one moment, of requests that are freed within the trace."""
    freed = requests.end_ns != NEVER
    pages = np.bincount(requests.owner[which], minlength=len(requests)) * freed
    ns = np.concatenate((requests.begin_ns[freed], requests.end_ns[freed]))
    delta = np.concatenate((pages[freed], -pages[freed]))
    order = np.lexsort((delta, ns))  # frees first
    return int(np.cumsum(delta[order]).max(initial=0))


def _floor(requests: Requests, n_frames: int, *, merged: bool = False) -> Placement:
    """Nothing of any request happens, but for so many frames that must be split (by a bit that makes no page special)."""
    n = len(requests)
    when = int(requests.begin_ns.max(initial=0))
    places = SYMBOLIC + np.arange(n_frames, dtype=np.int64) * HUGE_FRAME_PAGES
    at = np.full(n_frames, when, np.int64)
    acts = Acts.joined(Acts.of(at, places, 1, mask_set=_PCD), Acts.of(at + 1, places, 1, mask_clr=_PCD))
    return Placement(
        dest=np.full(len(requests.pfn), GONE, np.int64),
        swallowed=np.ones(n, np.bool_),
        state=np.full(n, Served.SERVED, np.uint8),
        n_blocks=n_frames,
        acts=acts,
        merged_at_last=merged,
    )


def _packing(requests: Requests, host: Host) -> Placement:
    """Everything that is served from as few blocks as can be."""
    secret = requests.kind == RegionKind.SECRET_PAGE
    plenty = Host(1, np.zeros(0, np.int64), np.zeros((0, 11), np.int64), host.n_frames)
    run = run_cache(*requests.events(~secret), requests.first, requests.order, plenty, CacheRules())
    secret_page = secret[requests.owner]
    return Placement(
        dest=np.where(secret_page, GONE, np.where(run.dest < 0, GONE, SYMBOLIC + run.dest)),
        swallowed=secret,
        state=np.full(len(requests), Served.SERVED, np.uint8),
        n_blocks=run.n_blocks,
        idle_ns=run.ns,
        idle_pages=run.idle,
        refill_orders=run.refill_order,
    )
