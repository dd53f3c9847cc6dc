"""What each 2M frame of physical memory is at the end of a recording: whole, split before it or while our probes were attached, or
split meanwhile, and by whom."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.analysis import Analysis
from analyze.before_start import ATTACHING
from analyze.users import USER_LABELS
from collect.schema import HUGE_FRAME_PAGES, Level

__all__ = [
    "HOLE",
    "LEAF_1G",
    "LEAF_2M",
    "QUARTERS",
    "SPLIT_ATTACHING",
    "SPLIT_BEFORE",
    "USER_STATES",
    "Cells",
    "cells_of",
    "frame_states",
    "splits_of_2m",
]

HOLE, LEAF_1G, LEAF_2M, SPLIT_BEFORE, SPLIT_ATTACHING = 0, 1, 2, 3, 4
"""Split while attaching: whole before our probes were attached, in 4K entries when the recording started. The recorder's own doing."""
USER_STATES: dict[str, int] = {name: 5 + i for i, name in enumerate(USER_LABELS)}
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
    now = analysis.attribution.frames
    attaching = now.loc[now["split_name"] == ATTACHING, "frame"].to_numpy(np.int64)
    states[attaching[states[attaching] == SPLIT_BEFORE]] = SPLIT_ATTACHING
    end = np.flatnonzero(states != HOLE)
    return states[: int(end[-1]) + 1] if len(end) else states[:0]


QUARTERS = 4
"""Steps in which `Cells.quarters` counts."""


class Cells(NamedTuple):
    """Frames drawn `per_cell` to a cell.

    Attributes:
        state: [cells] of the frame that comes last in the legend: a split meanwhile goes before all else.
        quarters: [cells] of the cell's memory that 4K entries map, rounded up: 4 for all of it, 0 for none.
    """

    state: npt.NDArray[np.uint8]
    quarters: npt.NDArray[np.uint8]


def cells_of(states: npt.NDArray[np.uint8], per_cell: int, n_cells: int) -> Cells:
    """The first `n_cells` cells; beyond the last frame there are holes."""
    padded = np.full(n_cells * per_cell, HOLE, np.uint8)
    padded[: len(states)] = states[: len(padded)]
    frames = padded.reshape(n_cells, per_cell)
    there, in_4k = np.count_nonzero(frames != HOLE, axis=1), np.count_nonzero(frames >= SPLIT_BEFORE, axis=1)
    return Cells(frames.max(axis=1), (-(-QUARTERS * in_4k // np.maximum(there, 1))).astype(np.uint8))


def splits_of_2m(analysis: Analysis) -> pd.DataFrame:
    """The first split of each 2M entry: `Attribution.splits`, and frame."""
    splits = analysis.attribution.splits
    first = splits[splits["level"] == Level.M2].drop_duplicates("pfn", keep="first")
    return first.assign(frame=first["pfn"] // HUGE_FRAME_PAGES)
