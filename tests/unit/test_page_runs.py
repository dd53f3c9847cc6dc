"""Runs of pages that lie side by side: one for each stretch of places, whatever lies between in the request."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from collect.trace import open_trace
from replay.page_runs import runs_of
from replay.placement import GONE
from replay.stream import decode
from tests.machine import write_trace


def test_a_run_goes_on_behind_pages_without_a_place_and_ends_with_its_request(tmp_path: Path) -> None:
    requests = decode(open_trace(write_trace(tmp_path / "t", 3, scale=0.05, kernel_style="6.1"))).requests
    long = np.flatnonzero(requests.n_pages >= 4)[:2]
    which = np.zeros(len(requests), np.bool_)
    which[long] = True
    dest = np.full(len(requests.pfn), GONE, np.int64)
    first, second = requests.first[long]
    dest[[first, first + 2]] = 100, 101  # a page without a place between
    dest[second : second + 4] = 102, 103, 700, 701
    found = runs_of(requests, dest, which)
    assert found.request.tolist() == [long[0], long[1], long[1]]
    assert found.place.tolist() == [100, 102, 700]
    assert found.n_pages.tolist() == [2, 2, 2]
    assert found.is_first.tolist() == [1, 1, 0]
    assert len(runs_of(requests, dest, ~which).request) == 0
