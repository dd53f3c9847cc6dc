"""What each 2M frame of physical memory is at the end of a recording: whole, split before it, or split meanwhile, and by whom."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.analysis import Analysis
from analyze.users import USER_LABELS
from collect.schema import HUGE_FRAME_PAGES, Level

__all__ = ["HOLE", "LEAF_1G", "LEAF_2M", "SPLIT_BEFORE", "USER_STATES", "frame_states", "splits_of_2m"]

HOLE, LEAF_1G, LEAF_2M, SPLIT_BEFORE = 0, 1, 2, 3
USER_STATES: dict[str, int] = {name: 4 + i for i, name in enumerate(USER_LABELS)}
"""State of a frame that was split during the recording, by the user who did it first."""

_OF_LEVEL = np.array([HOLE, SPLIT_BEFORE, LEAF_2M, LEAF_1G], np.uint8)


def frame_states(analysis: Analysis) -> npt.NDArray[np.uint8]:
    """State of each 2M frame from address 0 on, up to the last that is mapped."""
    states: npt.NDArray[np.uint8] = _OF_LEVEL[analysis.rebuilt.final.frame_levels()]
    of_2m = splits_of_2m(analysis)
    frames = of_2m["frame"].to_numpy(np.int64)
    users = np.array([USER_STATES.get(user, USER_STATES["other"]) for user in of_2m["user"]], np.uint8)
    still = states[frames] == SPLIT_BEFORE
    states[frames[still]] = users[still]
    end = np.flatnonzero(states != HOLE)
    return states[: int(end[-1]) + 1] if len(end) else states[:0]


def splits_of_2m(analysis: Analysis) -> pd.DataFrame:
    """The first split of each 2M entry: `Attribution.splits`, and frame."""
    splits = analysis.attribution.splits
    first = splits[splits["level"] == Level.M2].drop_duplicates("pfn", keep="first")
    return first.assign(frame=first["pfn"] // HUGE_FRAME_PAGES)
