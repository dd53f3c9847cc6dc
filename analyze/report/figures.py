"""The pictures of a report, from the columns of an analysis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from analyze.analysis import Analysis
from analyze.counter_series import CounterSeries
from analyze.frame_states import frame_states
from analyze.health import Health
from analyze.losses import Doubt, loss_of
from analyze.pages.free_blocks import free_blocks
from analyze.plots.free import free_figure
from analyze.plots.levels import LevelsOverTime, Moments, SplitsOverTime, levels_figure
from analyze.plots.memory_map import map_figure
from analyze.plots.overview import overview_figure
from analyze.report.answer import answer, headline, subtitle
from analyze.report.checks import verdict
from analyze.report.page import UserView
from analyze.words.numbers import memory
from collect.schema import LEAF_PAGES, ChangeKind, Level

__all__ = ["figures"]


def figures(analysis: Analysis, health: Health, users: Sequence[UserView]) -> dict[str, Figure]:
    """The pictures of a report: `overview`, `levels`, `map`, and `free` where the trace says what free memory was made of.

    Args:
        health: of the same trace.
        users: what `analyze.report.users.users` returned.
    """
    splits = analysis.attribution.splits
    levels = analysis.rebuilt.levels
    over_time = LevelsOverTime(
        _seconds(analysis, levels["ts_ns"]),
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
    states = frame_states(analysis)
    zones = free_blocks(CounterSeries(analysis.trace))
    happened, left = answer(analysis, users)
    proof = verdict(analysis.verification)
    drawn = {
        "overview": overview_figure(
            headline(analysis, happened),
            f"{left} {subtitle(analysis)}. {proof.name.capitalize()}: {proof.text}",
            states,
            gigas,
            by_whom,
            analysis.duration_s,
        ),
        "levels": levels_figure(over_time, by_whom, analysis.duration_s, _moments(analysis, health)),
        "map": map_figure(states, gigas),
        "free": free_figure(zones, analysis.trace.manifest["ts_start_ns"], analysis.duration_s),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _moments(analysis: Analysis, health: Health) -> Moments:
    """Spans in which changes were lost, and memory that came and went."""
    lost = [(s.from_s, s.to_s) for loss in health.losses if loss_of(loss.name).doubt & Doubt.MAP for s in loss.spans]
    changes = analysis.rebuilt.changes
    there = np.isin(changes.kind, (int(ChangeKind.HOTPLUG_ADD), int(ChangeKind.HOTPLUG_REMOVE))) & (changes.ret == 0)
    came = []
    for row in np.flatnonzero(there).tolist():
        verb = "added" if changes.kind[row] == ChangeKind.HOTPLUG_ADD else "removed"
        at = max(0.0, (int(changes.ts_ns[row]) - int(analysis.trace.manifest["ts_start_ns"])) / 1e9)
        came.append((at, f"{memory(int(changes.n_pages[row]))} {verb}"))
    return Moments(lost, came)


def _seconds(analysis: Analysis, ts_ns: pd.Series[int]) -> npt.NDArray[np.float64]:
    since: npt.NDArray[np.float64] = (ts_ns - analysis.trace.manifest["ts_start_ns"]).to_numpy(np.float64) / 1e9
    return np.maximum(since, 0.0)
