"""What holds of every policy, whatever is asked of it: a page is given to one request at a time, and held only while it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.placement import SYMBOLIC, Host, Served
from replay.policies.choose import choose
from replay.requests import Requests
from replay.serving import serve
from tests.unit.test_replay_requests import BPF, MODULE, ROX, SECRET, requests_of

EVERY = [
    *(policy.label for policy in choose()),
    "gfp-unmapped:variant=ideal,shrinker=descending,block-bit=cleared,refill-order=5",
    "gfp-unmapped:variant=cover",
    "prog-pack:old-pack=no,pages=3",
    "rox-cache:old-block=no",
    "pageblock-flip:compaction=maybe",
]
a_request = st.tuples(
    st.sampled_from([MODULE, BPF, SECRET, ROX]),
    st.integers(1, 30),
    st.integers(1, 40),
    st.one_of(st.none(), st.integers(1, 60)),
)
free_blocks = st.one_of(st.none(), st.lists(st.integers(0, 2), min_size=11, max_size=11))
pressure = st.lists(st.tuples(st.integers(0, 2000), st.sampled_from([1, 128, 3000])), max_size=4)


def requests_from(rows: list[tuple[str, int, int, int | None]], text: int) -> Requests:
    """Requests one after the other, each so long after the last; text are the first pages of each area."""
    at, made = 0, []
    for kind, n_pages, gap, life in rows:
        at += 10 * gap
        n = {ROX: 512, SECRET: 1}.get(kind, n_pages)
        made.append((kind, n, at, None if life is None else at + 10 * life + 5))
    requests = requests_of(made, n_bytes=[row[1] * 1000 for row in made])
    nth = np.arange(len(requests.pfn)) - requests.first[requests.owner]
    return replace(requests, text=(nth < text) & (requests.order == 0)[requests.owner])


@pytest.mark.parametrize("text", EVERY)
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(a_request, max_size=25), n_text=st.integers(0, 5), free=free_blocks, calls=pressure)
def test_a_page_is_one_requests_at_a_time(
    text: str,
    rows: list[tuple[str, int, int, int | None]],
    n_text: int,
    free: list[int] | None,
    calls: list[tuple[int, int]],
) -> None:
    requests = requests_from(rows, n_text)
    calls = sorted(calls)
    host = Host(
        n_nodes=1,
        free_ns=np.zeros(0 if free is None else 1, np.int64),
        free_blocks=np.array([free] if free is not None else [], np.int64).reshape(-1, 11),
        pressure_ns=np.array([at for at, _ in calls], np.int64),
        pressure_pages=np.array([n for _, n in calls], np.int64),
    )
    (policy,) = choose([text])
    for placement in serve(policy, requests, host).placements:
        assert len(placement.dest) == len(requests.pfn)
        assert len(placement.swallowed) == len(placement.state) == len(requests)
        assert (np.diff(placement.acts.ts_ns) >= 0).all()
        assert (np.diff(placement.idle_ns) >= 0).all()
        assert (placement.idle_pages >= 0).all()
        events = requests.events(np.ones(len(requests), np.bool_))
        held: dict[int, int] = {}
        for request, is_free, _ in zip(*events, strict=True):
            pages = placement.dest[requests.first[request] : requests.first[request + 1]]
            for page in pages[pages >= SYMBOLIC].tolist():
                if is_free:
                    assert held.pop(page) == request
                else:
                    assert page not in held, f"page {page - SYMBOLIC} of {request} is {held[page]}'s"
                    held[page] = request
        failed = placement.state == Served.NOT_SERVED
        assert placement.swallowed[failed].all()
        assert (placement.dest[failed[requests.owner]] < 0).all()
        stays = placement.state == Served.AS_RECORDED
        assert (placement.dest == requests.pfn)[stays[requests.owner]].all()
        assert not placement.swallowed[stays].any()
