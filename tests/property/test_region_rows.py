"""Regions that share frames: one way through them keeps what taking them out one by one, oldest first, keeps."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.region_rows import NEVER, RegionRows

Region = tuple[int, int, list[int]]
"""Time of the allocation, of the free, and page frames (-1: not known)."""

regions = st.lists(
    st.tuples(st.integers(0, 20), st.sampled_from([*range(25), NEVER]), st.lists(st.integers(-1, 6), max_size=5)),
    max_size=12,
)


def kept(of: list[Region]) -> list[int]:
    """Places of those that share no frame with an older one that is kept and lives."""
    found: list[int] = []
    for i, (ts, _, frames) in enumerate(of):
        held_until = {frame: of[j][1] for j in found for frame in of[j][2] if frame >= 0}
        if not any(ts < held_until.get(frame, -1) for frame in frames):
            found.append(i)
    return found


@settings(deadline=None)
@given(regions)
def test_the_outermost_are_those_that_share_no_frame_with_a_living_older_one(drawn: list[Region]) -> None:
    of = sorted(drawn, key=lambda region: region[0])
    counts = [len(frames) for _, _, frames in of]
    rows = RegionRows(
        trace=None,  # type: ignore[arg-type]
        column={},
        ts_ns=np.array([region[0] for region in of], np.int64),
        first=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        pfn=np.array([frame for region in of for frame in region[2]], np.int64),
        is_alloc=np.ones(len(of), np.bool_),
        free_ns=np.array([region[1] for region in of], np.int64),
        free_pid=np.zeros(len(of), np.int64),
    )
    assert rows.outermost(np.arange(len(of))).tolist() == kept(of)
