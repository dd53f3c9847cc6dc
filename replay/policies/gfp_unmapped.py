"""The `__GFP_UNMAPPED` cache of the RFC of March 2023: as posted with its flag mask repaired, as meant, and ideal."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from collect.schema import HUGE_FRAME_PAGES, RegionKind
from replay.cache_rules import BLOCK_ORDER, CacheRules, CacheRun
from replay.page_runs import runs_of
from replay.placement import INVALID_CLR, SYMBOLIC, Acts, Host, Placement, Served
from replay.policies.base import VIEW, Outcome, Parameter, Policy
from replay.requests import Requests
from replay.unmapped_cache import run_cache

__all__ = ["GfpUnmapped"]

Int64 = npt.NDArray[np.int64]


class GfpUnmapped(Policy):
    """Special pages come from a global cache in the page allocator, refilled by 2 MiB blocks.

    Source: Mike Rapoport, "[RFC PATCH 0/5] Prototype for direct map awareness in page allocator", 2023-03-08,
    20230308094106.227365-1-rppt@kernel.org, patches 1/5 to 5/5. "As posted" with one repair: `__GFP_BITS_SHIFT` cuts
    the new flag off without LOCKDEP, so that literally as posted nothing happens at all.

    Mechanism:
        * Lists and shrinker: see `replay.unmapped_cache`.
        * `variant=posted`: a refill unmaps, one page a call, only as many pages as the request asked for (the loop runs
          to the request's order, not the refill's). The first such call splits the block's 2M entry.
        * `variant=cover`, what the cover letter says: it unmaps all pages of the refill, still one page a call.
        * `variant=ideal`: one call on the whole refill, which leaves a 2M entry one entry; whatever comes back is unmapped
          again; what the shrinker gives away is mapped by one call a chunk.
        * Users (4/5, 5/5): an area of n pages of module_alloc or execmem is n requests of order 0; where the recorded
          kernel maps by 2M entries (a ROX block) each is one request of order 9; a secret page is one of order 0.
        * secretmem's own unmapping and mapping are deleted by 5/5, so those recorded changes do not happen.
        * Whatever else users do to their pages (read-only, reset on vfree) is carried over to the cache's pages.
        * A freed page goes back to the cache while the bit of its pageblock is set. The shrinker (3/5) clears it with
          chunks of order 9 only (`block-bit=sticky`, as posted) or with any (`cleared`).

    Where the trace does not tell, results span two ways (`CacheRules.hopeful`): all goes well, or nothing does.

    Not modelled: merging to order 10 across two refills; the races between allocation and shrinker; who waits in
    reclaim for an order-9 block.
    """

    name = "gfp-unmapped"
    title = "__GFP_UNMAPPED RFC 2023, mask repaired"
    parameters: ClassVar[dict[str, Parameter]] = {
        "variant": Parameter(
            "posted",
            "what a refill unmaps: the request's pages (posted, RFC 1/5), all of it page by page (cover, RFC 0/5), all of it "
            "by one call (ideal)",
            ("posted", "cover", "ideal"),
        ),
        "refill-order": Parameter(
            BLOCK_ORDER,
            "highest order asked of the page allocator (RFC 1/5: PMD_ORDER), then each below down to the request's",
            lowest=0,
            highest=BLOCK_ORDER,
            unit="(2^n pages)",
        ),
        "shrinker": Parameter(
            "ascending",
            "which chunks memory pressure takes first: the smallest (RFC 3/5), the largest, or there is no shrinker",
            ("ascending", "descending", "off"),
        ),
        "block-bit": Parameter(
            "sticky",
            "whether the bit that draws freed pages into the cache outlives a chunk below 2 MiB that was given back "
            "(sticky, RFC 3/5) or not",
            ("sticky", "cleared"),
        ),
        "requests": VIEW,
    }

    def place(self, requests: Requests, host: Host) -> Outcome:
        plenty, scarce = host.between_readings()
        hopeful = self._run(requests, plenty, hopeful=True)
        runs = [hopeful]
        open_questions = bool(len(hopeful.release_event)) or bool(hopeful.in_pieces.any())
        if open_questions or host.readings_leave_open(hopeful.refill_order):
            runs.append(self._run(requests, scarce, hopeful=False))
        return Outcome(
            [self._placed(requests, run) for run in runs],
            identity=len(requests) == 0,
            caveats=self._caveats(runs, host),
            narrow=_narrow(runs, host),
        )

    def _run(self, requests: Requests, host: Host, *, hopeful: bool) -> CacheRun:
        if self.word("shrinker") == "off":
            host = host.without_pressure()
        rules = CacheRules(
            orders=tuple(range(self.number("refill-order"), -1, -1)),
            descending=self.word("shrinker") == "descending",
            clear_bit=self.word("block-bit") == "cleared",
            hopeful=hopeful,
        )
        events = requests.events(np.ones(len(requests), np.bool_))
        return run_cache(*events, requests.first, requests.order, host, rules)

    def _placed(self, requests: Requests, run: CacheRun) -> Placement:
        served = np.ones(len(requests), np.bool_)
        served[requests.owner[run.dest < 0]] = False
        secret = requests.kind == RegionKind.SECRET_PAGE
        dest = np.where(run.dest < 0, run.dest, SYMBOLIC + run.dest)
        refills, n_unmapped = self._refills(requests, run)
        acts = [refills, self._releases(run)]
        if self.word("variant") == "ideal":
            freed = runs_of(requests, dest, served & ~secret).freed
            acts.append(
                Acts.of(
                    freed.end_ns + 2, freed.place, freed.n_pages, mask_clr=INVALID_CLR, n_calls=freed.n_pages,
                    n_range_flushes=freed.is_first, user=freed.user,
                )
            )  # fmt: skip
            n_unmapped += int(freed.n_pages.sum())
        return Placement(
            dest=dest,
            swallowed=secret | ~served,
            state=np.where(served, Served.SERVED, Served.NOT_SERVED).astype(np.uint8),
            n_blocks=run.n_blocks,
            in_pieces=run.in_pieces,
            acts=Acts.joined(*acts),
            idle_ns=run.ns,
            idle_pages=run.idle,
            refill_orders=run.refill_order,
            refill_failures=run.n_failed_refills,
            pages_unmapped=n_unmapped,
            pages_released=int(np.left_shift(1, run.release_order).sum()),
        )

    def _refills(self, requests: Requests, run: CacheRun) -> tuple[Acts, int]:
        """set_direct_map_invalid_noflush on pages of each refill, then one flush of that range (1/5); pages unmapped."""
        posted, whole = self.word("variant") == "posted", self.word("variant") == "ideal"
        n_pages = np.left_shift(1, run.refill_request_order if posted else run.refill_order)
        acts = Acts.of(
            run.ns[run.refill_event],
            SYMBOLIC + run.refill_block * HUGE_FRAME_PAGES,
            n_pages,
            whole=whole,
            mask_clr=INVALID_CLR,
            n_calls=1 if whole else n_pages,
            n_range_flushes=1,
            user=requests.user[run.refill_request],
        )
        return acts, int(n_pages.sum())

    def _releases(self, run: CacheRun) -> Acts:
        """set_direct_map_default_noflush on every page of a chunk given back, without a flush (3/5)."""
        whole = self.word("variant") == "ideal"
        n_pages = np.left_shift(1, run.release_order)
        return Acts.of(
            run.ns[run.release_event],
            SYMBOLIC + run.release_page,
            n_pages,
            whole=whole,
            mask_set=INVALID_CLR,
            n_calls=1 if whole else n_pages,
        )

    def _caveats(self, runs: list[CacheRun], host: Host) -> list[str]:
        caveats = []
        if not len(host.pressure_ns):
            caveats.append(
                "The shrinker is never driven: no --pressure was given. It gives pages back one by one and never restores "
                "a 2M entry (RFC 3/5), so it could only add splits."
            )
        if self.word("variant") == "posted":
            caveats.append(
                "As posted, a refill takes only the requested page out of the direct map; the other pages of the block are "
                "handed out still mapped. So this counts splits, not isolation."
            )
        caveats.append("Cache operations are atomic here; in the posted patch allocation and shrinker race.")
        if not len(host.free_ns):
            caveats.append(
                "The trace holds no counts of free blocks: every refill is taken to get the order it asks for."
            )
        small = max(int(np.count_nonzero(run.refill_order < BLOCK_ORDER)) for run in runs)
        if small:
            caveats.append(
                f"Up to {small} refills got less than order 9. Lower bound: the rest of their blocks, which the sticky "
                "block bit draws into the cache as it is freed, is freed at once; upper bound: never."
            )
        return caveats


def _narrow(runs: list[CacheRun], host: Host) -> list[str]:
    narrow = []
    if any(len(run.refill_order) for run in runs):
        narrow.append(
            f"{host.not_told('a refill')} An intact 2M frame counts as one more split, one that was split before as none."
        )
    if any(len(run.release_event) for run in runs):
        narrow.append(
            "What the shrinker gives back may be freed into the cache again at once or never: a recording with --pages "
            "all would tell how long others keep pages."
        )
    return narrow
