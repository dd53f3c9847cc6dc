"""Lets a policy place the requests of some users, and fills in what it need not know of: the rest, and lives not recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from collect.errors import TraceError
from collect.schema import Pte, RegionKind
from replay.page_runs import runs_of
from replay.placement import GONE, INVALID_CLR, Acts, Host, Placement, Served
from replay.policies.base import Outcome, Policy
from replay.requests import Life, Requests
from replay.users import USERS, User

__all__ = ["parse_users", "serve"]

Bools = npt.NDArray[np.bool_]

_RW = int(Pte.RW)


def parse_users(text: str | None) -> frozenset[User] | None:
    """Users from `modules,bpf,...`; None for all. Raises TraceError for one that does not exist."""
    if text is None:
        return None
    chosen = set()
    for word in text.split(","):
        name = word.strip().lower()
        found = next((i for i, user in enumerate(USERS) if name in (user, user + "s")), None)
        if found is None:
            raise TraceError(f"no user is called {word[:60]!r}; choose from {', '.join(USERS)}, with commas between")
        chosen.add(User(found))
    return frozenset(chosen)


def serve(policy: Policy, requests: Requests, host: Host, users: frozenset[User] | None = None) -> Outcome:
    """What the policy makes of the requests of `users` (None: all); the others stay as recorded."""
    chosen = np.ones(len(requests), np.bool_)
    if users is not None:
        chosen = np.isin(requests.user, [int(user) for user in users])
    shown = chosen & (requests.life != Life.CACHE)
    outcome = policy.place(requests if shown.all() else requests.select(shown), host)
    return replace(outcome, placements=[_whole(requests, chosen, shown, p) for p in outcome.placements])


def _whole(requests: Requests, chosen: Bools, shown: Bools, part: Placement) -> Placement:
    """A placement of the requests `shown` as one of all.

    In the view as asked, a cache of the recorded kernel is gone as soon as the policy serves anything that lay in it; else
    it stays as recorded, and what lay in it with it.
    """
    if shown.all():
        swallowed, state, dest = part.swallowed, part.state, part.dest
    else:
        dest, swallowed, state = (
            requests.pfn.copy(),
            np.zeros(len(requests), np.bool_),
            np.zeros(len(requests), np.uint8),
        )
        dest[shown[requests.owner]] = part.dest
        swallowed[shown], state[shown] = part.swallowed, part.state
    served = state == Served.SERVED
    packs_gone = bool(np.any(served & (requests.life == Life.IMAGE)))
    blocks_gone = bool(np.any(served & (requests.life == Life.AREA)))
    is_block = requests.kind == RegionKind.ROX_BLOCK
    gone = chosen & (requests.life == Life.CACHE) & np.where(is_block, blocks_gone, packs_gone)
    if gone.any():
        dest, swallowed = np.where(gone[requests.owner], GONE, dest), swallowed | gone
    part = replace(part, dest=dest, swallowed=swallowed, state=state)
    if not packs_gone and not blocks_gone:
        return part
    own = chosen & ~part.swallowed
    lives = _lives(requests, own & packs_gone, own & blocks_gone, part)
    return part if not len(lives) else replace(part, acts=Acts.joined(part.acts, lives))


def _lives(requests: Requests, of_images: Bools, of_areas: Bools, placement: Placement) -> Acts:
    """Changes that the recorded kernel's caches spared the requests that lay in them (see `Life`).

    An image: set_memory_ro and set_memory_x when it is made. Both kinds: vfree's reset, page by page (vm_reset_perms).
    """
    image = of_images & (requests.life == Life.IMAGE)
    both = runs_of(requests, placement.dest, image | (of_areas & (requests.life == Life.AREA)))
    made, gone = both.only(image[both.request]), both.freed
    return Acts.joined(
        Acts.of(
            made.begin_ns, made.place, made.n_pages, mask_clr=_RW, n_calls=2 * made.is_first,
            n_call_flushes=2 * made.is_first, user=made.user,
        ),
        Acts.of(
            gone.end_ns + 1, gone.place, gone.n_pages, mask_clr=INVALID_CLR, n_calls=gone.n_pages,
            n_range_flushes=gone.is_first, user=gone.user,
        ),
        Acts.of(gone.end_ns + 1, gone.place, gone.n_pages, mask_set=INVALID_CLR, n_calls=gone.n_pages, user=gone.user),
    )  # fmt: skip
