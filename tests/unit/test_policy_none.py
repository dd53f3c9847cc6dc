"""Without a cache every request keeps its frames."""

from __future__ import annotations

import numpy as np

from replay.placement import Host
from replay.policies import POLICIES
from tests.unit.test_replay_requests import BPF, MODULE, SECRET, requests_of


def test_every_page_stays_where_it_was_recorded() -> None:
    requests = requests_of([(MODULE, 7, 0, 9), (BPF, 2, 3, None), (SECRET, 1, 5, 8)])
    outcome = POLICIES["none"].place(requests, Host(1, np.zeros(0, np.int64), np.zeros((0, 11), np.int64)))
    (placement,) = outcome.placements
    assert outcome.identity
    assert placement.dest.tolist() == requests.pfn.tolist()
    assert not placement.swallowed.any()
    assert placement.n_blocks == 0
    assert placement.as_recorded == 3
