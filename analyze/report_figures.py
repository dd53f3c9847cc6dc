"""The pictures of a report, from the columns of an analysis."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from analyze.analysis import Analysis
from analyze.counter_series import CounterSeries
from analyze.free_blocks import free_blocks
from analyze.plots_free import free_figure
from analyze.plots_levels import LevelsOverTime, SplitsOverTime, levels_figure
from analyze.plots_map import HOLE, LEAF_1G, LEAF_2M, SPLIT_BEFORE, USER_STATES, map_figure
from collect.schema import HUGE_FRAME_PAGES, LEAF_PAGES, Level

__all__ = ["figures"]


def figures(analysis: Analysis) -> dict[str, Figure]:
    """The pictures of a report: `levels`, `map`, and `free` where the trace says what free memory was made of."""
    splits = analysis.attribution.splits
    levels = analysis.rebuilt.levels
    t_s = _seconds(analysis, levels["ts_ns"])
    over_time = LevelsOverTime(
        t_s,
        levels["g1"].to_numpy(np.int64) * LEAF_PAGES[Level.G1],
        levels["m2"].to_numpy(np.int64) * LEAF_PAGES[Level.M2],
        levels["k4"].to_numpy(np.int64),
    )
    by_whom = SplitsOverTime(
        _seconds(analysis, splits["ts_ns"]),
        splits["user"].to_numpy(dtype=object),
        (splits["level"] == Level.G1).to_numpy(bool),
    )
    gigas = splits.loc[splits["level"] == Level.G1, "pfn"].to_numpy(np.int64) // LEAF_PAGES[Level.G1]
    zones = free_blocks(CounterSeries(analysis.trace))
    drawn = {
        "levels": levels_figure(over_time, by_whom, analysis.duration_s),
        "map": map_figure(_states(analysis), gigas),
        "free": free_figure(zones, analysis.trace.manifest["ts_start_ns"], analysis.duration_s),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _seconds(analysis: Analysis, ts_ns: pd.Series[int]) -> npt.NDArray[np.float64]:
    since: npt.NDArray[np.float64] = (ts_ns - analysis.trace.manifest["ts_start_ns"]).to_numpy(np.float64) / 1e9
    return np.maximum(since, 0.0)


def _states(analysis: Analysis) -> npt.NDArray[np.uint8]:
    """State of each 2M frame at the end, as the map draws it."""
    levels = analysis.rebuilt.final.frame_levels()
    codes = np.array([HOLE, SPLIT_BEFORE, LEAF_2M, LEAF_1G], np.uint8)  # by Level
    states: npt.NDArray[np.uint8] = codes[levels]
    splits = analysis.attribution.splits
    of_2m = splits[splits["level"] == Level.M2].drop_duplicates("pfn", keep="first")
    frames = of_2m["pfn"].to_numpy(np.int64) // HUGE_FRAME_PAGES
    users = np.array([USER_STATES.get(user, USER_STATES["other"]) for user in of_2m["user"]], np.uint8)
    still = states[frames] == SPLIT_BEFORE
    states[frames[still]] = users[still]
    end = np.flatnonzero(states != HOLE)
    return states[: int(end[-1]) + 1] if len(end) else states[:0]
