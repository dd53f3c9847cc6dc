"""The benchmark's stream is the recording's, again and again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from collect.trace import open_trace
from replay.engine import walk
from replay.policies import POLICIES
from replay.requests import NEVER
from replay.serving import serve
from replay.stream import decode
from tests.bench.replayer import page_stream, repeated

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "6.1-churn"


@pytest.mark.parametrize("name", ["none", "gfp-unmapped"])
def test_three_times_the_stream_is_three_times_the_steps_and_the_same_frames(name: str) -> None:
    stream = decode(open_trace(SAMPLE))
    once = repeated(stream, 1)
    thrice = repeated(stream, 2 * (2 * len(once.requests) + len(once.steps)) + 1)
    assert len(thrice.requests) == 3 * len(once.requests)
    assert len(thrice.steps) == 3 * len(once.steps)
    assert (thrice.requests.end_ns != NEVER).all()
    assert (np.diff(thrice.requests.alloc_ns) >= 0).all()
    walks = []
    for part in (once, thrice):
        (placement,) = serve(POLICIES[name], part.requests, part.host).placements
        walks.append(walk(part, placement))
    refills = walks[0].split_2m[1] if name == "gfp-unmapped" else 0
    assert walks[1].n_steps == 3 * walks[0].n_steps - 2 * refills  # its refills are made once
    assert walks[1].split_2m == walks[0].split_2m
    assert len(page_stream(thrice)) == 3 * len(page_stream(once)) > 0
