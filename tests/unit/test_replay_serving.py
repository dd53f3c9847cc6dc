"""Users left out stay as recorded; a recorded cache goes only when what lay in it is served; spared changes then happen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from collect.schema import RegionKind
from replay.ownership import Touches, join_layers
from replay.placement import GONE, SYMBOLIC, Host, Served, as_recorded
from replay.policies import POLICIES, Outcome, Policy
from replay.requests import Life, Requests
from replay.serving import serve
from replay.users import User
from tests.unit.test_replay_requests import BPF, MODULE, ROX, SECRET, requests_of

NO_COUNTS = Host(1, np.zeros(0, np.int64), np.zeros((0, 11), np.int64))


def lives(requests: Requests, *life: Life) -> Requests:
    return replace(requests, life=np.array(life, np.uint8))


class Keep(Policy):
    """Serves nothing."""

    name = "keep"
    title = "nothing served"

    def place(self, requests: Requests, host: Host) -> Outcome:
        assert not (requests.life == Life.CACHE).any()  # no policy sees those
        return Outcome([as_recorded(requests)])


def test_whose_requests_are_not_chosen_stay_as_recorded() -> None:
    requests = requests_of([(MODULE, 2, 0, None), (SECRET, 1, 1, None), (BPF, 1, 2, 5)])
    (p,) = serve(POLICIES["gfp-unmapped"], requests, NO_COUNTS, frozenset({User.SECRETMEM, User.BPF})).placements
    assert p.dest.tolist() == [0, 1, SYMBOLIC, SYMBOLIC + 1]
    assert p.state.tolist() == [Served.AS_RECORDED, Served.SERVED, Served.SERVED]
    assert p.swallowed.tolist() == [False, True, False]
    (nobody,) = serve(POLICIES["gfp-unmapped"], requests, NO_COUNTS, frozenset({User.FTRACE})).placements
    assert nobody.dest.tolist() == requests.pfn.tolist()
    assert nobody.as_recorded == 3


def packed() -> Requests:
    """A pack, and an image of two pages in it."""
    requests = requests_of([(BPF, 4, 0, None), (BPF, 2, 3, 7)])
    pfn = np.array([0, 1, 2, 3, -1, -1])
    return replace(lives(requests, Life.CACHE, Life.IMAGE), pfn=pfn, kind=np.full(2, RegionKind.BPF_PACK, np.uint8))


def test_a_pack_goes_when_its_images_are_served_and_they_are_made_and_reset() -> None:
    (p,) = serve(POLICIES["grouped"], packed(), NO_COUNTS).placements
    assert p.dest.tolist() == [GONE] * 4 + [SYMBOLIC, SYMBOLIC + 1]
    assert p.swallowed.tolist() == [True, False]
    # read-only (and executable, which the direct map never sees); then invalid and default
    assert p.acts.ts_ns.tolist() == [3, 8, 8]
    assert p.acts.mask_clr.tolist() == [2, 3, 0]
    assert p.acts.mask_set.tolist() == [0, 0, 3]
    assert p.acts.n_calls.tolist() == [2, 2, 2]
    assert p.acts.n_range_flushes.tolist() == [0, 1, 0]


def test_a_pack_stays_where_nothing_of_it_is_served() -> None:
    (p,) = serve(Keep(), packed(), NO_COUNTS).placements
    assert p.dest.tolist() == [0, 1, 2, 3, -1, -1]
    assert not p.swallowed.any()
    assert not len(p.acts)


def test_an_area_of_a_block_is_reset_where_the_block_is_gone() -> None:
    requests = lives(
        requests_of([(ROX, 512, 0, None), (MODULE, 2, 3, 7), (SECRET, 1, 4, None)]),
        Life.CACHE,
        Life.AREA,
        Life.RECORDED,
    )
    (p,) = serve(POLICIES["grouped"], requests, NO_COUNTS).placements
    assert (p.dest[:512] == GONE).all()
    assert p.acts.ts_ns.tolist() == [8, 8]
    (kept,) = serve(Keep(), requests, NO_COUNTS).placements
    assert kept.dest.tolist() == requests.pfn.tolist()
    assert not len(kept.acts)


def test_an_area_owns_its_frames_before_the_block_does() -> None:
    touches = Touches(
        place=np.array([5, 5, 6, 5]), ts_ns=np.array([5, 15, 15, 40]), pid=np.zeros(4, np.int64),
        mask_set=np.zeros(4, np.uint64), mask_clr=np.full(4, 2, np.uint64),
    )  # fmt: skip
    place, alloc, free = np.array([5, 6, 5]), np.array([0, 0, 10]), np.array([99, 99, 20])
    owner = join_layers(
        touches, place, alloc, free, np.ones(3, np.int64), np.array([True, True, False]), after_free=False
    )
    assert owner.tolist() == [0, 2, 1, 0]
